//! Formats of 256 weights a block.

use std::arch::aarch64::*;

use super::byte_dots::Dot;
use super::vectors::{load_i8, load_i16, load_u8};
use crate::kernels::scalar;
use crate::quant::{BlockQ8K, IntBlock, SuperBlock, half_at, q4_k_scales};

/// A block in vectors, in 16 runs of 16 weights.
pub(super) struct Codes {
    pub(super) q: [int8x16_t; 16],
    /// The scale of each run in every lane.
    pub(super) scales: [int32x4_t; 16],
    /// The min of each run; meaningless for a format without mins.
    pub(super) mins: [int16x8_t; 2],
    pub(super) d: f32,
    pub(super) dmin: f32,
}

impl Codes {
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn zero() -> Self {
        Self {
            q: [vdupq_n_s8(0); 16],
            scales: [vdupq_n_s32(0); 16],
            mins: [vdupq_n_s16(0); 2],
            d: 0.0,
            dmin: 0.0,
        }
    }
}

/// `out[t] = row · xs[t]`: each block is unpacked once for all activations.
///
/// # Safety
/// [`Dot::detected`] is true.
#[target_feature(enable = "neon")]
pub(super) unsafe fn row<D: Dot, F: SuperBlock>(
    row: &[u8],
    xs: &[&[BlockQ8K]],
    out: &mut [f32],
    mut unpack: impl FnMut(&F::Bytes, &mut Codes),
) {
    out.fill(0.0);
    let mut w = Codes::zero();
    for (b, bytes) in F::blocks(row).iter().enumerate() {
        unpack(bytes, &mut w);
        for (x, out) in xs.iter().zip(out.iter_mut()) {
            // SAFETY: the caller promises the CPU.
            *out += unsafe { term::<D, F>(&w, &x[b]) };
        }
    }
}

/// What a block adds to its row.
///
/// # Safety
/// [`Dot::detected`] is true.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn term<D: Dot, F: SuperBlock>(w: &Codes, x: &BlockQ8K) -> f32 {
    // Several sums, so that the chains of additions overlap.
    let mut sums = [vdupq_n_s32(0); 4];
    let weights =
        w.q.as_chunks::<4>()
            .0
            .iter()
            .zip(w.scales.as_chunks::<4>().0);
    for (runs, (q, scales)) in x.q.as_chunks::<64>().0.iter().zip(weights) {
        for (i, run) in runs.as_chunks::<16>().0.iter().enumerate() {
            // SAFETY: the caller promises the CPU. No format has weights beyond -64 and 63.
            let products = unsafe { D::dot_codes(vdupq_n_s32(0), q[i], load_i8(run)) };
            sums[i] = vmlaq_s32(sums[i], products, scales[i]);
        }
    }
    let sum = vaddvq_s32(vaddq_s32(
        vaddq_s32(sums[0], sums[1]),
        vaddq_s32(sums[2], sums[3]),
    ));
    let mut mins = 0;
    if F::HAS_MINS {
        let sums = x.bsums.as_chunks::<8>().0;
        let (low, high) = (load_i16(&sums[0]), load_i16(&sums[1]));
        let mut products = vmull_s16(vget_low_s16(w.mins[0]), vget_low_s16(low));
        products = vmlal_high_s16(products, w.mins[0], low);
        products = vmlal_s16(products, vget_low_s16(w.mins[1]), vget_low_s16(high));
        mins = vaddvq_s32(vmlal_high_s16(products, w.mins[1], high));
    }
    scalar::term::<F>((w.d, w.dmin), x.d, sum, mins)
}

/// The block that plain code has unpacked.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load<F: SuperBlock>(block: &IntBlock, codes: &mut Codes) {
    (codes.d, codes.dmin) = (block.d, block.dmin);
    for (k, run) in block.q.as_chunks::<16>().0.iter().enumerate() {
        codes.q[k] = load_i8(run);
        codes.scales[k] = vdupq_n_s32(i32::from(block.scales[k]));
    }
    if F::HAS_MINS {
        for (to, mins) in codes.mins.iter_mut().zip(block.mins.as_chunks::<8>().0) {
            *to = load_i16(mins);
        }
    }
}

/// The scales of a Q4_K block; those of the sub-blocks one a byte.
pub(super) struct Q4KScales {
    pub(super) scales: u64,
    pub(super) mins: u64,
    pub(super) d: f32,
    pub(super) dmin: f32,
}

impl Q4KScales {
    #[inline]
    pub(super) fn new(bytes: &[u8; 144]) -> Self {
        let (scales, mins) = q4_k_scales(bytes);
        Self {
            scales,
            mins,
            d: half_at(bytes, 0),
            dmin: half_at(bytes, 2),
        }
    }
}

/// A Q4_K block without the way through plain integers.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn unpack_q4_k(bytes: &[u8; 144], codes: &mut Codes) {
    let head = Q4KScales::new(bytes);
    (codes.d, codes.dmin) = (head.d, head.dmin);
    // Each min twice: a sub-block of 32 has two activation sums.
    let mins = vcreate_u8(head.mins);
    let spread = |mins| vreinterpretq_s16_u16(vmovl_u8(mins));
    codes.mins = [spread(vzip1_u8(mins, mins)), spread(vzip2_u8(mins, mins))];
    for (p, pair) in bytes[16..].as_chunks::<32>().0.iter().enumerate() {
        for (half, packed) in pair.as_chunks::<16>().0.iter().enumerate() {
            let packed = load_u8(packed);
            let low = vandq_u8(packed, vdupq_n_u8(15));
            codes.q[4 * p + half] = vreinterpretq_s8_u8(low);
            codes.q[4 * p + 2 + half] = vreinterpretq_s8_u8(vshrq_n_u8::<4>(packed));
        }
    }
    for (j, scale) in head.scales.to_le_bytes().into_iter().enumerate() {
        let scale = vdupq_n_s32(i32::from(scale));
        codes.scales[2 * j] = scale;
        codes.scales[2 * j + 1] = scale;
    }
}
