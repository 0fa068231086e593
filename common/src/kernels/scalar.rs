//! The definition of every product, in plain Rust. The other instruction sets give these bits.
//!
//! Integer sums are exact: see the bounds at [`IntBlock`]. A foreign activation block may carry
//! any `bsums`; 16 of them times a min of at most 63 stay below 2^26.

use super::instruction_set::{InstructionSet, IsaName};
use super::lanes::{self, LANES};
use super::operands::q4_k_blocks::{BlockRows, FourBlocks, PanelResults, Q4_K_ROWS, Q4KRowSums};
use super::operands::q8_0_blocks::{Lane, LaneSums, ORDER, Q8_0_ROWS};
use super::operands::q8_0_blocks::{SixteenBlocks, TokenGroup, UnpackedBlock};
use crate::quant::{BlockQ8, BlockQ8K, IntBlock, PanelBlock, Q4K, Q8_0, SmallBlock, SuperBlock};
use crate::quant::{block_of_row, widen_bf16, widen_f16};

/// Plain Rust, which every CPU runs. As it is its own base, it has to define every product itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scalar;

impl InstructionSet for Scalar {
    type Base = Self;

    const ISA: IsaName = IsaName::Scalar;

    fn base(self) -> Self {
        self
    }

    fn vectorised<R>(self, work: impl FnOnce() -> R) -> R {
        work()
    }

    fn dots_f32(self, a: &[f32], bs: &[&[f32]], out: &mut [f32]) {
        lanes::dots_many(a, bs, out);
    }

    fn add_scaled(self, factors: &[f32], xs: &[&[f32]], y: &mut [f32]) {
        lanes::add_scaled(factors, xs, y);
    }

    fn widen_bf16(self, row: &[u8], out: &mut [f32]) {
        widen_bf16(row, out);
    }

    fn widen_f16(self, row: &[u8], out: &mut [f32]) {
        widen_f16(row, out);
    }

    fn q4_k(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        self.super_blocks::<Q4K>(row, xs, out);
    }

    fn super_blocks<F: SuperBlock>(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        out.fill(0.0);
        let mut w = IntBlock::ZERO;
        for (b, bytes) in F::blocks(row).iter().enumerate() {
            F::unpack(bytes, &mut w);
            for (x, acc) in xs.iter().zip(out.iter_mut()) {
                *acc += block_term::<F>(&w, &x[b]);
            }
        }
    }

    fn small_blocks<F: SmallBlock>(self, row: &[u8], xs: &[&[BlockQ8]], out: &mut [f32]) {
        let blocks = F::blocks(row);
        for (x, out) in xs.iter().zip(out.iter_mut()) {
            let mut lanes = [0.0; LANES];
            for (b, (w, x)) in blocks.iter().zip(*x).enumerate() {
                let lane = &mut lanes[b % LANES];
                lanes::add_small_block(lane, F::scale(w), &F::integers(w), x);
            }
            *out = lanes::tree(lanes);
        }
    }

    fn f16_gemv(self, row: &[u8], x: &[f32], _ahead: *const u8) -> f32 {
        let mut wide = vec![0.0; x.len()];
        widen_f16(row, &mut wide);
        let mut out = [0.0];
        lanes::dots_many(x, &[&wide], &mut out);
        out[0]
    }

    fn q8_0_gemv(self, row: &[u8], x: &[SixteenBlocks], _ahead: *const u8) -> f32 {
        let mut sums = [0.0; LANES];
        for (b, bytes) in Q8_0::blocks(row).iter().enumerate() {
            let (scale, q) = (Q8_0::scale(bytes), Q8_0::integers(bytes));
            let x = x[b / LANES].block(b % LANES);
            lanes::add_small_block(&mut sums[b % LANES], scale, &q, &x);
        }
        lanes::tree(sums)
    }

    fn q8_0_unpack(
        self,
        rows: &[&[u8]; Q8_0_ROWS],
        _ahead: *const u8,
        weights: &mut [UnpackedBlock],
    ) {
        for (r, row) in rows.iter().enumerate() {
            for (block, bytes) in weights.iter_mut().zip(Q8_0::blocks(row)) {
                block.set(r, bytes);
            }
        }
    }

    fn q8_0_gemm_32rows(self, weights: &[UnpackedBlock], x: TokenGroup<'_>, sums: &mut LaneSums) {
        for (i, &lane) in ORDER.iter().enumerate() {
            let Lane { own, left } = sums.lane(i, x.tokens);
            own.fill([0.0; Q8_0_ROWS]);
            for (b, block) in weights.iter().enumerate().skip(lane).step_by(LANES) {
                for r in 0..Q8_0_ROWS {
                    let (scale, q) = block.get(r);
                    for (x, sums) in x.of_block(b).iter().zip(own.iter_mut()) {
                        let products = q
                            .iter()
                            .zip(&x.q)
                            .map(|(&w, &x)| i32::from(w) * i32::from(x));
                        sums[r] += (scale * x.d) * products.sum::<i32>() as f32;
                    }
                }
            }
            Lane { own, left }.complete();
            sums.join(i, x.tokens);
        }
    }

    fn q4_k_gemv_4blocks(
        self,
        row: &[u8],
        x: &[&BlockQ8K],
        _fours: &[FourBlocks],
        _ahead: *const u8,
        terms: &mut [f32],
    ) {
        q4_k_terms(row, x, terms);
    }

    fn q4_k_gemm_8rows(
        self,
        w: BlockRows<'_, 8>,
        xs: &[&BlockQ8K],
        _ahead: *const u8,
        out: &mut [[f32; 8]],
    ) {
        add_q4_k_block(w.all(), xs, out);
    }

    fn q4_k_gemm_16rows(
        self,
        w: BlockRows<'_, 16>,
        xs: &[&BlockQ8K],
        _ahead: *const u8,
        out: &mut [Q4KRowSums],
    ) {
        add_q4_k_block(w.all(), xs, out);
    }

    fn q4_k_panel_gemm<const FRESH: bool>(
        self,
        panel: &[PanelBlock],
        xs: &[&BlockQ8K],
        _ahead: impl Fn(usize) -> *const u8,
        out: &mut PanelResults<'_>,
    ) {
        let tokens = xs.len().checked_div(panel.len()).unwrap_or(0);
        let mut sums = vec![[0.0; Q4_K_ROWS]; tokens];
        for (b, (block, xs)) in panel.iter().zip(xs.chunks(tokens.max(1))).enumerate() {
            let rows: [[u8; 144]; Q4_K_ROWS] = std::array::from_fn(|r| block_of_row(block, r));
            out.block = b;
            for (t, sums) in sums.iter_mut().enumerate() {
                *sums = if FRESH { [0.0; Q4_K_ROWS] } else { *out.of(t) };
            }
            add_q4_k_block(rows.each_ref(), xs, &mut sums);
            for (t, sums) in sums.iter().enumerate() {
                *out.of(t) = *sums;
            }
        }
    }

    fn prefetch(self, _start: *const u8, _bytes: usize) {}

    fn read_through(self, bytes: &[u8]) -> u64 {
        let mut sums = [0; 32];
        for part in bytes.as_chunks::<256>().0 {
            for (sum, word) in sums.iter_mut().zip(part.as_chunks::<8>().0) {
                *sum ^= u64::from_le_bytes(*word);
            }
        }
        sums.iter().fold(0, |all, sum| all ^ sum)
    }

    fn multiply_bytes(self, _rounds: u32) -> Option<u64> {
        None
    }
}

/// What a super-block adds to its row, from the two exact integer sums and the scales `d` and
/// `dmin`.
#[inline(always)]
pub(super) fn term<F: SuperBlock>((d, dmin): (f32, f32), d8: f32, sum: i32, mins: i32) -> f32 {
    let value = ((d8 * d) * F::UNIT) * sum as f32;
    if F::HAS_MINS {
        value - (d8 * dmin) * mins as f32
    } else {
        value
    }
}

/// What an unpacked super-block adds to its row.
#[inline(always)]
fn block_term<F: SuperBlock>(w: &IntBlock, x: &BlockQ8K) -> f32 {
    term::<F>((w.d, w.dmin), x.d, weighted_sum(w, x), sum_of_mins(w, x))
}

/// `Σ_k scale_k Σ_{i in run k} q_i x_i`.
#[inline(always)]
pub(super) fn weighted_sum(w: &IntBlock, x: &BlockQ8K) -> i32 {
    let runs = w.q.as_chunks::<16>().0.iter().zip(x.q.as_chunks::<16>().0);
    runs.zip(w.scales)
        .map(|((w, x), scale)| {
            let run: i32 = w
                .iter()
                .zip(x)
                .map(|(&w, &x)| i32::from(w) * i32::from(x))
                .sum();
            i32::from(scale) * run
        })
        .sum()
}

/// `Σ_k min_k bsum_k`; meaningless for a format without mins.
#[inline(always)]
pub(super) fn sum_of_mins(w: &IntBlock, x: &BlockQ8K) -> i32 {
    w.mins
        .iter()
        .zip(&x.bsums)
        .map(|(&m, &s)| i32::from(m) * i32::from(s))
        .sum()
}

/// `out[t][r] += w[r] · xs[t]` for one block of each of `N` rows.
fn add_q4_k_block<const N: usize>(w: [&[u8; 144]; N], xs: &[&BlockQ8K], out: &mut [[f32; N]]) {
    let mut block = IntBlock::ZERO;
    for (r, bytes) in w.iter().enumerate() {
        Q4K::unpack(bytes, &mut block);
        for (x, out) in xs.iter().zip(out.iter_mut()) {
            out[r] += block_term::<Q4K>(&block, x);
        }
    }
}

/// `terms[b] = row[b] · x[b]` for the blocks of a Q4_K row.
pub(super) fn q4_k_terms(row: &[u8], x: &[&BlockQ8K], terms: &mut [f32]) {
    let mut block = IntBlock::ZERO;
    for ((bytes, x), result) in Q4K::blocks(row).iter().zip(x).zip(terms) {
        Q4K::unpack(bytes, &mut block);
        *result = block_term::<Q4K>(&block, x);
    }
}

#[cfg(test)]
mod tests {
    use super::super::operands::q8_0_blocks::PackedBlock;
    use super::*;

    #[test]
    fn lanes_are_joined_as_the_tree_does() {
        let block = |seed: usize| BlockQ8 {
            d: 0.5 + (seed % 7) as f32,
            q: std::array::from_fn(|i| (seed * 31 + i * 17) as i8),
        };
        for blocks in [1, 5, 16, 17, 40] {
            let bytes: Vec<u8> = (0..Q8_0_ROWS * blocks * 34)
                .map(|i| {
                    if i % 34 == 1 {
                        0x30
                    } else {
                        (i * 73 % 251) as u8
                    }
                })
                .collect();
            let rows: [&[u8]; Q8_0_ROWS] =
                std::array::from_fn(|r| &bytes[r * blocks * 34..][..blocks * 34]);
            let tokens: Vec<Vec<BlockQ8>> = (0..3)
                .map(|t| (0..blocks).map(|b| block(100 * t + b)).collect())
                .collect();
            let packed: Vec<PackedBlock> = (0..blocks)
                .flat_map(|b| tokens.iter().map(move |x| PackedBlock::new(&x[b])))
                .collect();
            let group = TokenGroup {
                blocks: &packed,
                tokens: 3,
            };
            let (mut sums, mut weights) = (LaneSums::default(), vec![UnpackedBlock::ZERO; blocks]);
            Scalar.q8_0_unpack(&rows, std::ptr::null(), &mut weights);
            Scalar.q8_0_gemm_32rows(&weights, group, &mut sums);
            for (x, sums) in tokens.iter().zip(sums.total(3)) {
                let mut laid_out = Vec::new();
                SixteenBlocks::lay_out(x, &mut laid_out);
                for (row, sum) in rows.iter().zip(sums) {
                    let dot = Scalar.q8_0_gemv(row, &laid_out, std::ptr::null());
                    assert_eq!(sum.to_bits(), dot.to_bits());
                }
            }
        }
    }
}
