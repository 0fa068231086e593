//! GEMV of Q4_K: one row times one activation, four blocks at a time: AVX-512 with VNNI.
//!
//! The blocks' scales are decoded side by side, a block a 128-bit lane; the weights of each block
//! are taken 64 bytes at a time as they lie. The loops of the two
//! widths differ in how scales are spread over such a piece; they share their frame, `block_terms`.

use std::arch::x86_64::*;

use super::block_terms::{gemv_by_four_blocks, q4_k_four_terms};
use super::vectors::{part, sum_four_512};
use crate::kernels::operands::q4_k_blocks::FourBlocks;
use crate::quant::BlockQ8K;

/// `terms[b] = row[b] · x[b]`, prefetching a row from `ahead`.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn q4_k_gemv_4blocks(
    row: &[u8],
    x: &[&BlockQ8K],
    fours: &[FourBlocks],
    ahead: *const u8,
    terms: &mut [f32],
) {
    let controls = Controls::new();
    let four_terms = |w: &_, x: &_| four_terms(w, x, &controls);
    gemv_by_four_blocks(row, x, fours, ahead, terms, four_terms);
}

/// Which byte of a lane's eight scales and eight mins goes where.
struct Controls {
    /// Per 64 bytes of weights and their nibbles: a scale in every word.
    scales: [[__m512i; 2]; 2],
    /// Four mins, each twice, as 16-bit integers.
    mins: [__m512i; 2],
}

impl Controls {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new() -> Self {
        let lanes = |first: [u8; 4]| {
            // Bytes above the lowest of a word are cleared.
            let word = |b: u8| i32::from_le_bytes([b, 0x80, 0x80, 0x80]);
            let [a, b, c, d] = first.map(word);
            _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d)
        };
        let scales = |first: u8| lanes([first, first, first + 2, first + 2]);
        let mins = |first: u8| {
            let word = |b: u8| i32::from_le_bytes([b, 0x80, b, 0x80]);
            let [a, b, c, d] = [first, first + 1, first + 2, first + 3].map(word);
            _mm512_broadcast_i32x4(_mm_setr_epi32(a, b, c, d))
        };
        Controls {
            scales: [[scales(0), scales(1)], [scales(4), scales(5)]],
            mins: [mins(8), mins(12)],
        }
    }
}

/// 16 bytes of each of four blocks.
#[inline]
#[target_feature(enable = "avx512f")]
fn heads(w: &[[u8; 144]; 4]) -> __m512i {
    let load = |i: usize| {
        let bytes: &[u8; 16] = part(&w[i], 0);
        // SAFETY: the reference is valid for 16 bytes, which need no alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    };
    let all = _mm512_castsi128_si512(load(0));
    let all = _mm512_inserti32x4::<1>(all, load(1));
    let all = _mm512_inserti32x4::<2>(all, load(2));
    _mm512_inserti32x4::<3>(all, load(3))
}

/// In every lane, eight scales and eight mins, a byte each.
#[inline]
#[target_feature(enable = "avx512f")]
fn decode(heads: __m512i) -> __m512i {
    let low = _mm512_shuffle_epi32::<0b10_10_01_01>(heads);
    let rest = _mm512_shuffle_epi32::<0b11_11_11_11>(heads);
    let shifts = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0, 4, 4));
    let four = _mm512_and_si512(_mm512_srlv_epi32(rest, shifts), _mm512_set1_epi8(0x0f));
    let top = _mm512_and_si512(_mm512_srli_epi32::<2>(low), _mm512_set1_epi8(0x30));
    let high = _mm512_or_si512(four, top);
    let low = _mm512_and_si512(low, _mm512_set1_epi8(0x3f));
    _mm512_mask_blend_epi32(0xaaaa, low, high)
}

/// The first word of every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn firsts(v: __m512i) -> __m128i {
    let at = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm512_castsi512_si128(_mm512_permutexvar_epi32(at, v))
}

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn four_terms(w: &[[u8; 144]; 4], x: &FourBlocks, controls: &Controls) -> [f32; 4] {
    let heads = heads(w);
    let scales = decode(heads);
    let of_block = [
        _mm512_shuffle_i32x4::<0x00>(scales, scales),
        _mm512_shuffle_i32x4::<0x55>(scales, scales),
        _mm512_shuffle_i32x4::<0xaa>(scales, scales),
        _mm512_shuffle_i32x4::<0xff>(scales, scales),
    ];
    let mut sums = [_mm512_setzero_si512(); 4];
    for i in 0..4 {
        for half in 0..2 {
            let packed = load_u8x64(part(&w[i][16..], half));
            let low = _mm512_set1_epi8(15);
            let q = [
                _mm512_and_si512(packed, low),
                _mm512_and_si512(_mm512_srli_epi16::<4>(packed), low),
            ];
            for (n, q) in q.into_iter().enumerate() {
                let x = load_i8x64(&x.q[4 * i + 2 * half + n]);
                let quads = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q, x);
                let scale = _mm512_shuffle_epi8(of_block[i], controls.scales[half][n]);
                // Four products are at most 4 * 15 * 128, so the lower 16 bits of a lane are its
                // value, and the zero above the scale hides the upper ones.
                sums[i] = _mm512_dpwssd_epi32(sums[i], quads, scale);
            }
        }
    }
    let mut mins = _mm512_setzero_si512();
    for (control, bsums) in controls.mins.into_iter().zip(&x.bsums) {
        let four = _mm512_shuffle_epi8(scales, control);
        mins = _mm512_dpwssd_epi32(mins, four, load_i16x32(bsums));
    }
    mins = _mm512_add_epi32(mins, _mm512_shuffle_epi32::<0b10_11_00_01>(mins));
    mins = _mm512_add_epi32(mins, _mm512_shuffle_epi32::<0b01_00_11_10>(mins));
    q4_k_four_terms(firsts(heads), &x.d, sum_four_512(&sums), firsts(mins))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_u8x64(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the reference is valid for 64 bytes and the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i8x64(bytes: &[[i8; 32]; 2]) -> __m512i {
    // SAFETY: the reference is valid for 64 bytes and the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i16x32(values: &[[i16; 8]; 4]) -> __m512i {
    // SAFETY: the reference is valid for 64 bytes and the load needs no alignment.
    unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
}
