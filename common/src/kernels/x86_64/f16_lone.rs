//! A row of half floats times one f32 activation: AVX-512.

use std::arch::x86_64::*;

use super::q8_lone::request;
use super::{load_256, load_f32x16, part, store_f32x16};
use crate::kernels::lanes::{self, LANES};
use crate::quant::widen_f16;

/// `row · x`; meanwhile asks for a row's worth of bytes at `ahead`.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn f16_lone(row: &[u8], x: &[f32], ahead: *const u8) -> f32 {
    let (pairs, rest) = row.as_chunks::<64>();
    let mut sums = _mm512_setzero_ps();
    for (i, (w, x)) in pairs.iter().zip(x.as_chunks::<32>().0).enumerate() {
        request::<1>(ahead.wrapping_add(64 * i));
        for half in 0..2 {
            let w = _mm512_cvtph_ps(load_256(part::<u8, 32>(w, half)));
            let products = _mm512_mul_ps(load_f32x16(part(x, half)), w);
            sums = _mm512_add_ps(sums, products);
        }
    }
    let mut lanes = [0.0; LANES];
    store_f32x16(sums, &mut lanes);
    let mut wide = [0.0; 32];
    let wide = &mut wide[..rest.len() / 2];
    widen_f16(rest, wide);
    for (i, (w, x)) in wide.iter().zip(&x[32 * pairs.len()..]).enumerate() {
        lanes[i % LANES] += x * w;
    }
    lanes::tree(lanes)
}
