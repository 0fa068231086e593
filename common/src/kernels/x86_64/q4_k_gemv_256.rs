//! GEMV of Q4_K: one row times one activation, four blocks at a time: AVX2.
//!
//! The blocks' scales are decoded side by side, a block a 128-bit lane; the weights of each block
//! are taken 32 bytes at a time as they lie. The loops of the two
//! widths differ in how scales are spread over such a piece; they share their frame, `block_terms`.

use std::arch::x86_64::*;

use super::block_terms::{gemv_by_four_blocks, q4_k_four_terms};
use super::vectors::{load_256, part, sum_four_256};
use crate::kernels::operands::q4_k_blocks::FourBlocks;
use crate::quant::BlockQ8K;

/// `terms[b] = row[b] · x[b]`, prefetching a row from `ahead`.
#[target_feature(enable = "avx2,f16c")]
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
    /// The scale of each sub-block in every 16-bit lane.
    scales: [__m256i; 8],
    /// Four mins, each twice, as 16-bit integers.
    mins: [__m256i; 2],
}

impl Controls {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new() -> Self {
        // Bytes above the lowest of a 16-bit lane are cleared.
        let twice = |b: u8| i32::from_le_bytes([b, 0x80, b, 0x80]);
        let mins = |first: u8| {
            let [a, b, c, d] = [first, first + 1, first + 2, first + 3].map(twice);
            _mm256_broadcastsi128_si256(_mm_setr_epi32(a, b, c, d))
        };
        let mut scales = [_mm256_setzero_si256(); 8];
        for (j, scale) in scales.iter_mut().enumerate() {
            *scale = _mm256_set1_epi32(twice(j as u8));
        }
        Controls {
            scales,
            mins: [mins(8), mins(12)],
        }
    }
}

/// The first 16 bytes of two blocks.
#[inline]
#[target_feature(enable = "avx2")]
fn heads(w: [&[u8; 144]; 2]) -> __m256i {
    let load = |i: usize| {
        let bytes: &[u8; 16] = part(w[i], 0);
        // SAFETY: the reference is valid for 16 bytes, which need no alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    };
    _mm256_set_m128i(load(1), load(0))
}

/// In every lane, eight scales and eight mins, a byte each.
#[inline]
#[target_feature(enable = "avx2")]
fn decode(heads: __m256i) -> __m256i {
    let low = _mm256_shuffle_epi32::<0b10_10_01_01>(heads);
    let rest = _mm256_shuffle_epi32::<0b11_11_11_11>(heads);
    let shifts = _mm256_setr_epi32(0, 0, 4, 4, 0, 0, 4, 4);
    let four = _mm256_and_si256(_mm256_srlv_epi32(rest, shifts), _mm256_set1_epi8(0x0f));
    let top = _mm256_and_si256(_mm256_srli_epi32::<2>(low), _mm256_set1_epi8(0x30));
    let high = _mm256_or_si256(four, top);
    let low = _mm256_and_si256(low, _mm256_set1_epi8(0x3f));
    _mm256_blend_epi32::<0b1010_1010>(low, high)
}

/// The first words of the lanes of two vectors, in the order of the lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn firsts(v: [__m256i; 2]) -> __m128i {
    let pairs = _mm256_unpacklo_epi32(v[0], v[1]);
    let (low, high) = (
        _mm256_castsi256_si128(pairs),
        _mm256_extracti128_si256::<1>(pairs),
    );
    _mm_unpacklo_epi32(low, high)
}

/// The integer sum of block `i` in eight parts; `scales` are the block's in both lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn dot(w: &[u8; 144], i: usize, scales: __m256i, x: &FourBlocks, controls: &Controls) -> __m256i {
    let low = _mm256_set1_epi8(15);
    let mut sum = _mm256_setzero_si256();
    for p in 0..4 {
        let packed = load_256(part::<_, 32>(&w[16..], p));
        let q = [
            _mm256_and_si256(packed, low),
            _mm256_and_si256(_mm256_srli_epi16::<4>(packed), low),
        ];
        for (n, q) in q.into_iter().enumerate() {
            let x = load_256(&x.q[4 * i + 2 * (p / 2) + n][p % 2]);
            // A pair of products is at most 2 * 15 * 128, which fits in 16 bits.
            let pairs = _mm256_maddubs_epi16(q, x);
            let scale = _mm256_shuffle_epi8(scales, controls.scales[2 * p + n]);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, scale));
        }
    }
    sum
}

/// The products of two blocks' mins and activation sums, in four parts a lane.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_mins(scales: __m256i, pair: usize, x: &FourBlocks, controls: &Controls) -> __m256i {
    let half = |n: usize| {
        let mins = _mm256_shuffle_epi8(scales, controls.mins[n]);
        let sums: &[[i16; 8]; 2] = part(&x.bsums[n], pair);
        // SAFETY: the reference is valid for 32 bytes and the load needs no alignment.
        let sums = unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) };
        _mm256_madd_epi16(mins, sums)
    };
    _mm256_add_epi32(half(0), half(1))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn four_terms(w: &[[u8; 144]; 4], x: &FourBlocks, controls: &Controls) -> [f32; 4] {
    let heads = [heads([&w[0], &w[1]]), heads([&w[2], &w[3]])];
    let scales = [decode(heads[0]), decode(heads[1])];
    let sums = [
        dot(&w[0], 0, lower(scales[0]), x, controls),
        dot(&w[1], 1, upper(scales[0]), x, controls),
        dot(&w[2], 2, lower(scales[1]), x, controls),
        dot(&w[3], 3, upper(scales[1]), x, controls),
    ];
    let mins = _mm256_hadd_epi32(
        sum_mins(scales[0], 0, x, controls),
        sum_mins(scales[1], 1, x, controls),
    );
    // Two parts of the first vector's lanes, then two of the second one's.
    let mins = _mm256_add_epi32(mins, _mm256_srli_epi64::<32>(mins));
    let mins = firsts([mins, _mm256_unpackhi_epi64(mins, mins)]);
    q4_k_four_terms(firsts(heads), &x.d, sum_four_256(&sums), mins)
}

/// The lower lane twice.
#[inline]
#[target_feature(enable = "avx2")]
fn lower(v: __m256i) -> __m256i {
    _mm256_permute4x64_epi64::<0b01_00_01_00>(v)
}

/// The upper lane twice.
#[inline]
#[target_feature(enable = "avx2")]
fn upper(v: __m256i) -> __m256i {
    _mm256_permute4x64_epi64::<0b11_10_11_10>(v)
}
