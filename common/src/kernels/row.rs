//! What an instruction set has to offer: products of one weight row with several activations.

use super::q4_k::{Four, Rows};
use super::sixteen::{self, Blocks, Sums};
use crate::quant::{BlockQ8, BlockQ8K, SmallBlock, SuperBlock};

/// The products of one row. An implementor is a proof that the CPU has the instructions, so its
/// methods are safe.
///
/// The callers see to it that a row holds as many blocks as each of `xs`, and that `out` is as
/// long as `xs`; implementations stay within bounds (and may panic or leave results unwritten)
/// if that is not so.
pub(super) trait RowKernel: Copy + Send + Sync {
    /// Whether [`RowKernel::q4_k_sixteen`] is faster than row by row.
    const SIXTEEN: bool = false;

    /// Whether [`RowKernel::q4_k_eight`] is faster than row by row.
    const EIGHT: bool = false;

    /// Whether [`RowKernel::q4_k_terms`] is faster than [`RowKernel::q4_k`] for one activation.
    const TERMS: bool = false;

    fn name(self) -> &'static str;

    /// `out[i] = a · bs[i]`.
    fn dots_f32(self, a: &[f32], bs: &[&[f32]], out: &mut [f32]);

    /// `y += factors[i] * xs[i]` for each `i` in turn.
    fn add_scaled(self, factors: &[f32], xs: &[&[f32]], y: &mut [f32]);

    /// Half floats to f32.
    fn widen_f16(self, row: &[u8], out: &mut [f32]);

    /// Brain floats to f32.
    fn widen_bf16(self, row: &[u8], out: &mut [f32]);

    /// `out[t] = row · xs[t]` for Q4_K.
    fn q4_k(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]);

    /// `out[t] = row · xs[t]` for any other format of 256 weights a block.
    fn super_blocks<F: SuperBlock>(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]);

    /// `out[t] = row · xs[t]` for a format of 32 weights a block.
    fn small_blocks<F: SmallBlock>(self, row: &[u8], xs: &[&[BlockQ8]], out: &mut [f32]);

    /// `out[t][r] += w[r] · xs[t]` for one Q4_K block of sixteen rows.
    fn q4_k_sixteen(self, w: Blocks<'_>, xs: &[&BlockQ8K], out: &mut [Sums]) {
        sixteen::add_block(w, xs, out);
    }

    /// As [`RowKernel::q4_k_sixteen`]; meanwhile asks for the 16 blocks' worth of bytes at `ahead`,
    /// which may be no valid address.
    fn q4_k_sixteen_ahead(
        self,
        w: Rows<'_, 16>,
        xs: &[&BlockQ8K],
        _ahead: *const u8,
        out: &mut [Sums],
    ) {
        self.q4_k_sixteen(w.all(), xs, out);
    }

    /// As [`RowKernel::q4_k_sixteen_ahead`] for eight rows.
    fn q4_k_eight(self, w: Rows<'_, 8>, xs: &[&BlockQ8K], _ahead: *const u8, out: &mut [[f32; 8]]) {
        sixteen::add_block(w.all(), xs, out);
    }

    /// `terms[b] = row[b] · x[b]` for the blocks of a Q4_K row; `fours` holds the whole fours of
    /// `x`. Meanwhile asks for a row's worth of bytes at `ahead`, which may be no valid address.
    fn q4_k_terms(
        self,
        row: &[u8],
        x: &[&BlockQ8K],
        _fours: &[Four],
        _ahead: *const u8,
        terms: &mut [f32],
    ) {
        sixteen::terms(row, x, terms);
    }

    /// Asks for bytes that will be read soon.
    fn prefetch(self, _bytes: &[u8]) {}
}
