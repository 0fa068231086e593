//! The definition of every product, in plain Rust. The other instruction sets give these bits.
//!
//! Integer sums are exact: see the bounds at [`IntBlock`]. A foreign activation block may carry
//! any `bsums`; 16 of them times a min of at most 63 stay below 2^26.

use super::lanes::{self, LANES};
use super::row::RowKernel;
use crate::quant::{BlockQ8, BlockQ8K, IntBlock, Q4K, SmallBlock, SuperBlock};
use crate::quant::{widen_bf16, widen_f16};

#[derive(Clone, Copy, Debug)]
pub(super) struct Scalar;

impl RowKernel for Scalar {
    fn name(self) -> &'static str {
        "scalar"
    }

    fn dots_f32(self, a: &[f32], bs: &[&[f32]], out: &mut [f32]) {
        lanes::dots_many(a, bs, out);
    }

    fn add_scaled(self, factors: &[f32], xs: &[&[f32]], y: &mut [f32]) {
        lanes::add_scaled(factors, xs, y);
    }

    fn widen_f16(self, row: &[u8], out: &mut [f32]) {
        widen_f16(row, out);
    }

    fn widen_bf16(self, row: &[u8], out: &mut [f32]) {
        widen_bf16(row, out);
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
                let x = &x[b];
                *acc += term::<F>(&w, x.d, weighted_sum(&w, x), sum_of_mins(&w, x));
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
}

/// What a super-block adds to its row, from the two exact integer sums.
#[inline(always)]
pub(super) fn term<F: SuperBlock>(w: &IntBlock, d8: f32, sum: i32, mins: i32) -> f32 {
    term_of::<F>((w.d, w.dmin), d8, sum, mins)
}

/// [`term`] of a block with the scales `d` and `dmin`.
#[inline(always)]
pub(super) fn term_of<F: SuperBlock>((d, dmin): (f32, f32), d8: f32, sum: i32, mins: i32) -> f32 {
    let value = ((d8 * d) * F::UNIT) * sum as f32;
    if F::HAS_MINS {
        value - (d8 * dmin) * mins as f32
    } else {
        value
    }
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
