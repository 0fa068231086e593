//! What an instruction set has to offer: products of one weight row with several activations.

use super::sixteen::{self, Blocks, Sums};
use crate::quant::{BlockQ8, BlockQ8K, Iq2Xxs, Q2K, SmallBlock, SuperBlock};

/// The products of one row. An implementor is a proof that the CPU has the instructions, so its
/// methods are safe.
///
/// The callers see to it that a row holds as many blocks as each of `xs`, and that `out` is as
/// long as `xs`; implementations stay within bounds (and may panic or leave results unwritten)
/// if that is not so.
pub(super) trait RowKernel: Copy + Send + Sync {
    /// Whether [`RowKernel::q4_k_sixteen`] is faster than row by row.
    const SIXTEEN: bool = false;

    /// With how many activations that begins.
    const SIXTEEN_FROM: usize = 1;

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

    /// `out[t] = row · xs[t]` for Q2_K.
    fn q2_k(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        self.super_blocks::<Q2K>(row, xs, out);
    }

    /// `out[t] = row · xs[t]` for IQ2_XXS.
    fn iq2_xxs(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        self.super_blocks::<Iq2Xxs>(row, xs, out);
    }

    /// `out[t] = row · xs[t]` for any other format of 256 weights a block.
    fn super_blocks<F: SuperBlock>(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]);

    /// `out[t] = row · xs[t]` for a format of 32 weights a block.
    fn small_blocks<F: SmallBlock>(self, row: &[u8], xs: &[&[BlockQ8]], out: &mut [f32]);

    /// `out[t][r] += w[r] · xs[t]` for one Q4_K block of sixteen rows.
    fn q4_k_sixteen(self, w: Blocks<'_>, xs: &[&BlockQ8K], out: &mut [Sums]) {
        sixteen::add_block(w, xs, out);
    }

    /// Asks for bytes that will be read soon.
    fn prefetch(self, _bytes: &[u8]) {}
}
