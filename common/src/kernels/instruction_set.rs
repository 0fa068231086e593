//! What an instruction set offers to the loops: products of a weight row, or of one block of
//! several rows, with activations.

use super::operands::q4_k_blocks::{BlockRows, FourBlocks, PanelResults, Q4KRowSums};
use super::operands::q8_0_blocks::{LaneSums, Q8_0_ROWS, SixteenBlocks, TokenGroup, UnpackedBlock};
use crate::quant::{BlockQ8, BlockQ8K, Iq2Xxs, PanelBlock, Q2K, SmallBlock, SuperBlock};

/// An instruction set by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "each architecture has its own")]
pub(super) enum IsaName {
    Scalar,
    Avx2,
    AvxVnni,
    Avx512,
    Avx512Vnni,
    Neon,
    Dotprod,
    I8mm,
}

impl IsaName {
    /// What `--isa` takes.
    pub(super) const fn text(self) -> &'static str {
        match self {
            IsaName::Scalar => "scalar",
            IsaName::Avx2 => "avx2",
            IsaName::AvxVnni => "avxvnni",
            IsaName::Avx512 => "avx512",
            IsaName::Avx512Vnni => "avx512vnni",
            IsaName::Neon => "neon",
            IsaName::Dotprod => "dotprod",
            IsaName::I8mm => "i8mm",
        }
    }
}

/// The products of one instruction set. An implementor is a proof that the CPU has the
/// instructions, so its methods are safe.
///
/// What a set does not speed up is done by its [`InstructionSet::base`], apart from Q2_K and IQ2_XXS,
/// which fall back on the set's own `super_blocks`, and the grids, which go row by row. The base of
/// all is [`super::scalar::Scalar`], which implements every product itself.
///
/// Callers ensure that a row holds as many blocks as each of `xs`, and that `out` is as long as
/// `xs`; if that is not so, implementations stay within bounds (and may panic or leave results
/// unwritten).
///
/// An address called `ahead` is where the caller will read next: a method may prefetch from there
/// while it computes, as many bytes as it reads of its weights. The pointer need not be valid.
pub(super) trait InstructionSet: Copy + Send + Sync {
    /// A slower set that every CPU with this one has.
    type Base: InstructionSet;

    const ISA: IsaName;

    fn base(self) -> Self::Base;

    /// Runs `work` compiled for this instruction set, as far as it is inlined.
    fn vectorised<R>(self, work: impl FnOnce() -> R) -> R {
        self.base().vectorised(work)
    }

    /// `out[i] = a · bs[i]`.
    fn dots_f32(self, a: &[f32], bs: &[&[f32]], out: &mut [f32]) {
        self.base().dots_f32(a, bs, out);
    }

    /// `y += factors[i] * xs[i]` for each `i` in turn.
    fn add_scaled(self, factors: &[f32], xs: &[&[f32]], y: &mut [f32]) {
        self.base().add_scaled(factors, xs, y);
    }

    /// `out[i * stride + j] = a[i] · b[j]`; row by row unless the set has a loop of its own.
    fn dots_grid(self, a: &[&[f32]], b: &[&[f32]], out: &mut [f32], stride: usize) {
        for (a, out) in a.iter().zip(out.chunks_mut(stride)) {
            self.dots_f32(a, b, &mut out[..b.len()]);
        }
    }

    /// `ys[h] += factors[h * stride + i] * xs[i]` for each `i` in turn; the rows of `ys` are as
    /// long as those of `xs`. Row by row unless the set has a loop of its own.
    fn add_scaled_grid(self, factors: &[f32], stride: usize, xs: &[&[f32]], ys: &mut [f32]) {
        let Some(first) = xs.first() else { return };
        let rows = ys.chunks_exact_mut(first.len().max(1));
        for (factors, y) in factors.chunks(stride).zip(rows) {
            self.add_scaled(&factors[..xs.len()], xs, y);
        }
    }

    /// Half floats to f32.
    fn widen_f16(self, row: &[u8], out: &mut [f32]) {
        self.base().widen_f16(row, out);
    }

    /// Brain floats to f32.
    fn widen_bf16(self, row: &[u8], out: &mut [f32]) {
        self.base().widen_bf16(row, out);
    }

    /// `out[t] = row · xs[t]` for Q4_K.
    fn q4_k(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        self.base().q4_k(row, xs, out);
    }

    /// `out[t] = row · xs[t]` for Q2_K.
    fn q2_k(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        self.super_blocks::<Q2K>(row, xs, out);
    }

    /// `out[t] = row · xs[t]` for IQ2_XXS.
    fn iq2_xxs(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        self.super_blocks::<Iq2Xxs>(row, xs, out);
    }

    /// `out[t] = row · xs[t]` for any other format of 256 weights a block.
    fn super_blocks<F: SuperBlock>(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        self.base().super_blocks::<F>(row, xs, out);
    }

    /// `out[t] = row · xs[t]` for a format of 32 weights a block.
    fn small_blocks<F: SmallBlock>(self, row: &[u8], xs: &[&[BlockQ8]], out: &mut [f32]) {
        self.base().small_blocks::<F>(row, xs, out);
    }

    /// `row · x` for half floats, as long as `x`.
    fn f16_gemv(self, row: &[u8], x: &[f32], ahead: *const u8) -> f32 {
        self.base().f16_gemv(row, x, ahead)
    }

    /// `row · x` for Q8_0.
    fn q8_0_gemv(self, row: &[u8], x: &[SixteenBlocks], ahead: *const u8) -> f32 {
        self.base().q8_0_gemv(row, x, ahead)
    }

    /// Unpacks as many blocks of Q8_0 rows as `weights` holds, for
    /// [`InstructionSet::q8_0_gemm_32rows`].
    fn q8_0_unpack(
        self,
        rows: &[&[u8]; Q8_0_ROWS],
        ahead: *const u8,
        weights: &mut [UnpackedBlock],
    ) {
        self.base().q8_0_unpack(rows, ahead, weights);
    }

    /// `sums.total()[t][r] = w[r] · x[t]` for the rows that were unpacked.
    fn q8_0_gemm_32rows(self, weights: &[UnpackedBlock], x: TokenGroup<'_>, sums: &mut LaneSums) {
        self.base().q8_0_gemm_32rows(weights, x, sums);
    }

    /// `terms[b] = row[b] · x[b]` for the blocks of a Q4_K row; `fours` holds the whole fours of
    /// `x`.
    fn q4_k_gemv_4blocks(
        self,
        row: &[u8],
        x: &[&BlockQ8K],
        fours: &[FourBlocks],
        ahead: *const u8,
        terms: &mut [f32],
    ) {
        self.base().q4_k_gemv_4blocks(row, x, fours, ahead, terms);
    }

    /// `out[t][r] += w[r] · xs[t]` for one Q4_K block of eight rows.
    fn q4_k_gemm_8rows(
        self,
        w: BlockRows<'_, 8>,
        xs: &[&BlockQ8K],
        ahead: *const u8,
        out: &mut [[f32; 8]],
    ) {
        self.base().q4_k_gemm_8rows(w, xs, ahead, out);
    }

    /// `out[t][r] += w[r] · xs[t]` for one Q4_K block of sixteen rows.
    fn q4_k_gemm_16rows(
        self,
        w: BlockRows<'_, 16>,
        xs: &[&BlockQ8K],
        ahead: *const u8,
        out: &mut [Q4KRowSums],
    ) {
        self.base().q4_k_gemm_16rows(w, xs, ahead, out);
    }

    /// The products of a Q4_K panel's blocks with activations, of which `xs` has those for the
    /// first block before those for the next: added to what is in `out`, or written there if
    /// `FRESH`. `ahead(b)` is where to prefetch one block from during block `b`.
    fn q4_k_panel_gemm<const FRESH: bool>(
        self,
        panel: &[PanelBlock],
        xs: &[&BlockQ8K],
        ahead: impl Fn(usize) -> *const u8,
        out: &mut PanelResults<'_>,
    ) {
        self.base().q4_k_panel_gemm::<FRESH>(panel, xs, ahead, out);
    }

    /// Prefetches bytes that will be read soon; the pointer need not be valid.
    fn prefetch(self, start: *const u8, bytes: usize) {
        self.base().prefetch(start, bytes);
    }

    /// Reads every whole 256 bytes of `bytes` once, ascending; the result depends on all of them.
    fn read_through(self, bytes: &[u8]) -> u64 {
        self.base().read_through(bytes)
    }

    /// Multiplies and adds bytes in registers `rounds` times; returns the operations done, two for
    /// a product. `None` without vectors.
    fn multiply_bytes(self, rounds: u32) -> Option<u64>;
}
