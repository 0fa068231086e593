//! GEMV of F16: a row times one f32 activation: AVX-512, and AVX2 with F16C.
//!
//! The loops are copies but for the width: one that is generic needs more lines than both.

use std::arch::x86_64::*;

use super::vectors::{load_256, load_f32x16, load_halves, part, prefetch_lines, store_f32x16};
use crate::kernels::lanes::{self, LANES};
use crate::quant::widen_f16;

/// `row · x`, prefetching a row from `ahead`.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn f16_gemv_512(row: &[u8], x: &[f32], ahead: *const u8) -> f32 {
    let (pairs, rest) = row.as_chunks::<64>();
    let mut sums = _mm512_setzero_ps();
    for (i, (w, x)) in pairs.iter().zip(x.as_chunks::<32>().0).enumerate() {
        prefetch_lines::<1>(ahead, i);
        for half in 0..2 {
            let w = _mm512_cvtph_ps(load_256(part::<u8, 32>(w, half)));
            let products = _mm512_mul_ps(load_f32x16(part(x, half)), w);
            sums = _mm512_add_ps(sums, products);
        }
    }
    let mut lanes = [0.0; LANES];
    store_f32x16(sums, &mut lanes);
    finish(lanes, rest, &x[32 * pairs.len()..])
}

/// As [`f16_gemv_512`].
#[target_feature(enable = "avx2,f16c")]
pub(super) fn f16_gemv_256(row: &[u8], x: &[f32], ahead: *const u8) -> f32 {
    let (pairs, rest) = row.as_chunks::<64>();
    let mut sums = [_mm256_setzero_ps(); 2];
    for (i, (w, x)) in pairs.iter().zip(x.as_chunks::<32>().0).enumerate() {
        prefetch_lines::<1>(ahead, i);
        for quarter in 0..4 {
            let w = _mm256_cvtph_ps(load_halves(part(w, quarter)));
            let x: &[f32; 8] = part(x, quarter);
            // SAFETY: the reference is valid for 8 floats and the load needs no alignment.
            let x = unsafe { _mm256_loadu_ps(x.as_ptr()) };
            let sum = &mut sums[quarter % 2];
            *sum = _mm256_add_ps(*sum, _mm256_mul_ps(x, w));
        }
    }
    let mut lanes = [0.0; LANES];
    for (lanes, sum) in lanes.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
        // SAFETY: the reference is valid for 8 floats and the store needs no alignment.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
    }
    finish(lanes, rest, &x[32 * pairs.len()..])
}

/// Adds the products of fewer than 32 columns, then the lanes.
fn finish(mut lanes: [f32; LANES], row: &[u8], x: &[f32]) -> f32 {
    let mut wide = [0.0; 32];
    let wide = &mut wide[..row.len() / 2];
    widen_f16(row, wide);
    for (i, (w, x)) in wide.iter().zip(x).enumerate() {
        lanes[i % LANES] += x * w;
    }
    lanes::tree(lanes)
}
