//! GEMV of Q8_0: a row times one activation, 16 blocks at a time: AVX-512 with VNNI.

use std::arch::x86_64::*;

use super::vectors::sum_four_by_lane;
use super::vectors::{join, load_256, load_f32x16, part, prefetch_lines, store_f32x16};
use crate::kernels::lanes::{self, LANES};
use crate::kernels::operands::q8_0_blocks::{SixteenBlocks, pair_start};

/// Bytes of a block.
const BLOCK: usize = 34;

/// Cache lines that hold 16 blocks.
const LINES: usize = (LANES * BLOCK).div_ceil(64);

/// `row · x`, prefetching a row from `ahead`.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn q8_0_gemv(row: &[u8], x: &[SixteenBlocks], ahead: *const u8) -> f32 {
    let (whole, rest) = row.as_chunks::<{ LANES * BLOCK }>();
    let mut sums = _mm512_setzero_ps();
    for (i, (w, x)) in whole.iter().zip(x).enumerate() {
        prefetch_lines::<LINES>(ahead.wrapping_add(i * LANES * BLOCK), 0);
        sums = add(sums, w, x);
    }
    if let Some(x) = x.get(whole.len()) {
        // Blocks of zeros add nothing to their lanes.
        let mut w = [0; LANES * BLOCK];
        w[..rest.len()].copy_from_slice(rest);
        sums = add(sums, &w, x);
    }
    let mut lanes = [0.0; LANES];
    store_f32x16(sums, &mut lanes);
    lanes::tree(lanes)
}

/// Adds 16 blocks to their lanes.
///
/// The instruction multiplies unsigned by signed bytes, so it gets the weight plus 128; what this
/// adds is taken away. Exact for every byte: `255 * 128 * 32 < 2^31`.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn add(sums: __m512, w: &[u8; LANES * BLOCK], x: &SixteenBlocks) -> __m512 {
    let zero = _mm512_setzero_si512();
    let mut parts = [[zero; 4]; 2];
    for i in 0..8 {
        let at = pair_start(i);
        let w = join(weights(w, at), weights(w, at + 4));
        let raised = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
        parts[i / 4][i % 4] = _mm512_dpbusd_epi32(zero, raised, pair(&x.q[i]));
    }
    let low = sum_four_by_lane(&parts[0]);
    let high = sum_four_by_lane(&parts[1]);
    let even = _mm512_shuffle_i32x4::<0b10_00_10_00>(low, high);
    let odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(low, high);
    let dots = _mm512_add_epi32(_mm512_add_epi32(even, odd), offsets(&x.offset));
    let scale = _mm512_mul_ps(scales(w), load_f32x16(&x.d));
    _mm512_add_ps(sums, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(dots)))
}

#[inline]
#[target_feature(enable = "avx")]
fn weights(w: &[u8; LANES * BLOCK], block: usize) -> __m256i {
    load_256(part(&w[BLOCK * block + 2..], 0))
}

/// The half floats at the start of each block.
#[inline]
#[target_feature(enable = "f16c,avx512f,avx512bw,avx512vl")]
fn scales(w: &[u8; LANES * BLOCK]) -> __m512 {
    let half = |b: usize| i32::from(i16::from_le_bytes([w[BLOCK * b], w[BLOCK * b + 1]]));
    let mut halves = [_mm_setzero_si128(); 2];
    for (i, halves) in halves.iter_mut().enumerate() {
        let b = 8 * i;
        *halves = _mm_insert_epi16::<0>(*halves, half(b));
        *halves = _mm_insert_epi16::<1>(*halves, half(b + 1));
        *halves = _mm_insert_epi16::<2>(*halves, half(b + 2));
        *halves = _mm_insert_epi16::<3>(*halves, half(b + 3));
        *halves = _mm_insert_epi16::<4>(*halves, half(b + 4));
        *halves = _mm_insert_epi16::<5>(*halves, half(b + 5));
        *halves = _mm_insert_epi16::<6>(*halves, half(b + 6));
        *halves = _mm_insert_epi16::<7>(*halves, half(b + 7));
    }
    _mm512_cvtph_ps(_mm256_set_m128i(halves[1], halves[0]))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn pair(q: &[[i8; 32]; 2]) -> __m512i {
    // SAFETY: the reference is valid for 64 bytes and the load needs no alignment.
    unsafe { _mm512_loadu_si512(q.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn offsets(values: &[i32; LANES]) -> __m512i {
    // SAFETY: the reference is valid for 64 bytes and the load needs no alignment.
    unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
}
