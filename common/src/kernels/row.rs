//! What an instruction set has to offer: products of one weight row with several activations.

use super::q4_k::{Four, Rows};
use super::q8_lone::{self, Sixteen};
use super::q8_panel::{self, Group, MAX_ROWS, UnpackedBlock, Waiting};
use super::sixteen::{self, Blocks, Places, ROWS, Sums};
use crate::quant::{
    BlockQ8, BlockQ8K, Iq2Xxs, PanelBlock, Q2K, SmallBlock, SuperBlock, block_of_row,
};

/// The products of one row. An implementor is a proof that the CPU has the instructions, so its
/// methods are safe.
///
/// The callers see to it that a row holds as many blocks as each of `xs`, and that `out` is as
/// long as `xs`; implementations stay within bounds (and may panic or leave results unwritten)
/// if that is not so.
pub(super) trait RowKernel: Copy + Send + Sync {
    /// Whether [`RowKernel::q4_k_sixteen`] is faster than row by row.
    const SIXTEEN: bool = false;

    /// Activations from which sixteen rows at a time are faster than eight.
    const SIXTEEN_FROM: usize = 8;

    /// Whether [`RowKernel::q8_0_lone`] is faster than what takes several activations.
    const Q8_LONE: bool = false;

    /// The same for [`RowKernel::f16_lone`].
    const F16_LONE: bool = false;

    /// Rows that [`RowKernel::q8_panel`] takes at once; 0 where row by row is faster.
    const PANEL: usize = 0;
    /// Whether [`RowKernel::q4_k_eight`] is faster than row by row.
    const EIGHT: bool = false;

    /// Whether [`RowKernel::q4_k_terms`] is faster than [`RowKernel::q4_k`] for one activation.
    const TERMS: bool = false;

    fn name(self) -> &'static str;

    /// Runs `work` compiled for this instruction set, as far as it is inlined.
    fn vectorised<R>(self, work: impl FnOnce() -> R) -> R {
        work()
    }

    /// `out[i] = a · bs[i]`.
    fn dots_f32(self, a: &[f32], bs: &[&[f32]], out: &mut [f32]);

    /// `y += factors[i] * xs[i]` for each `i` in turn.
    fn add_scaled(self, factors: &[f32], xs: &[&[f32]], y: &mut [f32]);

    /// `out[i * stride + j] = a[i] · b[j]`.
    fn dots_grid(self, a: &[&[f32]], b: &[&[f32]], out: &mut [f32], stride: usize) {
        for (a, out) in a.iter().zip(out.chunks_mut(stride)) {
            self.dots_f32(a, b, &mut out[..b.len()]);
        }
    }

    /// `ys[h] += factors[h * stride + i] * xs[i]` for each `i` in turn; the rows of `ys` are as
    /// long as those of `xs`.
    fn add_scaled_grid(self, factors: &[f32], stride: usize, xs: &[&[f32]], ys: &mut [f32]) {
        let Some(first) = xs.first() else { return };
        let rows = ys.chunks_exact_mut(first.len().max(1));
        for (factors, y) in factors.chunks(stride).zip(rows) {
            self.add_scaled(&factors[..xs.len()], xs, y);
        }
    }

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

    /// `row · x` for Q8_0. Meanwhile asks for a row's worth of bytes at `ahead`, which may be no
    /// valid address.
    fn q8_0_lone(self, row: &[u8], x: &[Sixteen], _ahead: *const u8) -> f32 {
        q8_lone::dot(row, x)
    }

    /// `row · x` for half floats, as long as `x`. Meanwhile asks for a row's worth of bytes at
    /// `_ahead`, which may be no valid address.
    fn f16_lone(self, row: &[u8], x: &[f32], _ahead: *const u8) -> f32 {
        let mut wide = vec![0.0; x.len()];
        self.widen_f16(row, &mut wide);
        let mut out = [0.0];
        self.dots_f32(x, &[&wide], &mut out);
        out[0]
    }

    /// Unpacks as many blocks of Q8_0 rows as `weights` holds. Meanwhile asks for a panel's worth
    /// of bytes at `_ahead`, which may be no valid address.
    fn q8_unpack(self, rows: &[&[u8]; MAX_ROWS], _ahead: *const u8, weights: &mut [UnpackedBlock]) {
        q8_panel::unpack(rows, weights);
    }

    /// `waiting.total()[t][r] = w[r] · x[t]` for the rows that were unpacked.
    fn q8_panel(self, weights: &[UnpackedBlock], x: Group<'_>, waiting: &mut Waiting) {
        q8_panel::multiply(weights, x, waiting);
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

    /// The products of a panel's blocks with activations, of which `xs` has those for the first
    /// block before those for the next: added to what is in `out`, or written there if `FRESH`.
    /// Meanwhile asks for a block at `_ahead(b)`, which may be no valid address, for block `b`.
    fn q4_k_panel<const FRESH: bool>(
        self,
        panel: &[PanelBlock],
        xs: &[&BlockQ8K],
        _ahead: impl Fn(usize) -> *const u8,
        out: &mut Places<'_>,
    ) {
        let tokens = xs.len().checked_div(panel.len()).unwrap_or(0);
        let mut sums = vec![[0.0; ROWS]; tokens];
        for (b, (block, xs)) in panel.iter().zip(xs.chunks(tokens.max(1))).enumerate() {
            let rows: [[u8; 144]; ROWS] = std::array::from_fn(|r| block_of_row(block, r));
            out.block = b;
            for (t, sums) in sums.iter_mut().enumerate() {
                *sums = if FRESH { [0.0; ROWS] } else { *out.of(t) };
            }
            self.q4_k_sixteen(rows.each_ref(), xs, &mut sums);
            for (t, sums) in sums.iter().enumerate() {
                *out.of(t) = *sums;
            }
        }
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

    /// Asks for bytes that will be read soon, at what may be no valid address.
    fn prefetch(self, _start: *const u8, _bytes: usize) {}
}
