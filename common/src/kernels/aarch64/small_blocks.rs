//! Formats of 32 weights a block, 16 blocks at a time: each has its own lane.

use std::arch::aarch64::*;

use super::byte_dots::Dot;
use super::vectors::{load_f32, load_i8, store_f32};
use crate::kernels::lanes::{self, LANES};
use crate::quant::{BlockQ8, SmallBlock};

/// Activations whose lanes are kept while they are multiplied with a part of a row.
const TOKENS: usize = 64;

/// `out[t] = row · xs[t]`.
///
/// # Safety
/// [`Dot::detected`] is true.
#[target_feature(enable = "neon")]
pub(super) unsafe fn row<D: Dot, F: SmallBlock>(row: &[u8], xs: &[&[BlockQ8]], out: &mut [f32]) {
    if xs.len() == 1 {
        // SAFETY: the caller promises the CPU.
        return unsafe { some::<D, F, 1>(row, xs, out) };
    }
    for (xs, out) in xs.chunks(TOKENS).zip(out.chunks_mut(TOKENS)) {
        // SAFETY: the caller promises the CPU.
        unsafe { some::<D, F, TOKENS>(row, xs, out) };
    }
}

/// Up to `T` activations; each block is unpacked once.
///
/// # Safety
/// [`Dot::detected`] is true.
#[target_feature(enable = "neon")]
unsafe fn some<D: Dot, F: SmallBlock, const T: usize>(
    row: &[u8],
    xs: &[&[BlockQ8]],
    out: &mut [f32],
) {
    let (parts, rest) = F::blocks(row).as_chunks::<LANES>();
    let mut lanes = [[0.0; LANES]; T];
    for (p, blocks) in parts.iter().enumerate() {
        let scales: [f32; LANES] = std::array::from_fn(|i| F::scale(&blocks[i]));
        let q: [[i8; 32]; LANES] = std::array::from_fn(|i| F::integers(&blocks[i]));
        for (lanes, x) in lanes.iter_mut().zip(xs) {
            // SAFETY: the caller promises the CPU.
            unsafe { add_part::<D>(lanes, &scales, &q, &x.as_chunks().0[p]) };
        }
    }
    for (i, bytes) in rest.iter().enumerate() {
        let (scale, q) = (F::scale(bytes), F::integers(bytes));
        for (lanes, x) in lanes.iter_mut().zip(xs) {
            lanes::add_small_block(&mut lanes[i], scale, &q, &x[LANES * parts.len() + i]);
        }
    }
    for (lanes, out) in lanes.iter().zip(out) {
        *out = lanes::tree(*lanes);
    }
}

/// Adds 16 blocks to their lanes, in fours.
///
/// # Safety
/// [`Dot::detected`] is true.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_part<D: Dot>(
    lanes: &mut [f32; LANES],
    scales: &[f32; LANES],
    w: &[[i8; 32]; LANES],
    x: &[BlockQ8; LANES],
) {
    let weights = scales.as_chunks::<4>().0.iter().zip(w.as_chunks::<4>().0);
    let rest = lanes.as_chunks_mut::<4>().0.iter_mut();
    for (((scales, w), x), lanes) in weights.zip(x.as_chunks::<4>().0).zip(rest) {
        let mut sums = [vdupq_n_s32(0); 4];
        for (sum, (w, x)) in sums.iter_mut().zip(w.iter().zip(x)) {
            for (w, x) in w.as_chunks::<16>().0.iter().zip(x.q.as_chunks::<16>().0) {
                // SAFETY: the caller promises the CPU.
                *sum = unsafe { D::dot(*sum, load_i8(w), load_i8(x)) };
            }
        }
        let pairs = [vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3])];
        let sums = vcvtq_f32_s32(vpaddq_s32(pairs[0], pairs[1]));
        let d8 = load_f32(&[x[0].d, x[1].d, x[2].d, x[3].d]);
        let scale = vmulq_f32(load_f32(scales), d8);
        store_f32(vaddq_f32(load_f32(lanes), vmulq_f32(scale, sums)), lanes);
    }
}
