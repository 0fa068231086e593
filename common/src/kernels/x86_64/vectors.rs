//! Loads, stores and sums of vectors, and prefetches.

use std::arch::x86_64::*;

use crate::quant;

/// Part `i` of a list that is cut into parts of `N`.
#[inline(always)]
pub(super) fn part<T, const N: usize>(all: &[T], i: usize) -> &[T; N] {
    &all.as_chunks::<N>().0[i]
}

/// 32 bytes, signed or not.
#[inline]
#[target_feature(enable = "avx")]
pub(super) fn load_256<T: Byte>(bytes: &[T; 32]) -> __m256i {
    // SAFETY: the reference is valid for 32 bytes and the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// 16 integers of 16 bits.
#[inline]
#[target_feature(enable = "avx")]
pub(super) fn load_i16(values: &[i16; 16]) -> __m256i {
    // SAFETY: the reference is valid for 32 bytes and the load needs no alignment.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

/// 16 signed bytes.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn load_128(bytes: &[i8; 16]) -> __m128i {
    // SAFETY: the reference is valid for 16 bytes and the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Eight half floats.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn load_halves(bits: &[u8; 16]) -> __m128i {
    // SAFETY: the reference is valid for 16 bytes and the load needs no alignment.
    unsafe { _mm_loadu_si128(bits.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn store_f32x4(values: __m128, to: &mut [f32; 4]) {
    // SAFETY: the reference is valid for four floats and the store needs no alignment.
    unsafe { _mm_storeu_ps(to.as_mut_ptr(), values) }
}

#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn load_f32x4(values: &[f32; 4]) -> __m128 {
    // SAFETY: the reference is valid for four floats and the load needs no alignment.
    unsafe { _mm_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_f32x16(values: &[f32; 16]) -> __m512 {
    // SAFETY: the reference is valid for 16 floats and the load needs no alignment.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_f32x16(values: __m512, to: &mut [f32; 16]) {
    // SAFETY: the reference is valid for 16 floats and the store needs no alignment.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), values) }
}

/// Half floats to f32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn widen_f16(row: &[u8], out: &mut [f32]) {
    let (eights, rest) = row.as_chunks::<16>();
    let (wide, wide_rest) = out.as_chunks_mut::<8>();
    for (bits, to) in eights.iter().zip(wide) {
        let values = _mm256_cvtph_ps(load_halves(bits));
        // SAFETY: `to` is valid for eight floats and the store needs no alignment.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), values) };
    }
    quant::widen_f16(rest, wide_rest);
}

/// The sums of four vectors, in their order.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum_four_256(v: &[__m256i; 4]) -> __m128i {
    let pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    _mm_add_epi32(
        _mm256_castsi256_si128(pairs),
        _mm256_extracti128_si256::<1>(pairs),
    )
}

/// 64 signed bytes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_512(bytes: &[i8; 64]) -> __m512i {
    // SAFETY: the reference is valid for 64 bytes and the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// 32 integers of 16 bits.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_i16x32(values: &[i16; 32]) -> __m512i {
    // SAFETY: the reference is valid for 64 bytes and the load needs no alignment.
    unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn join(low: __m256i, high: __m256i) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// In every 128-bit lane, the sums over that lane of the four vectors, in their order.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn sum_four_by_lane(v: &[__m512i; 4]) -> __m512i {
    let mut pairs = [_mm512_setzero_si512(); 2];
    for (i, pair) in pairs.iter_mut().enumerate() {
        let low = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        *pair = _mm512_add_epi32(low, _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
    }
    let low = _mm512_unpacklo_epi64(pairs[0], pairs[1]);
    _mm512_add_epi32(low, _mm512_unpackhi_epi64(pairs[0], pairs[1]))
}

/// The sums of four vectors, in their order.
#[inline]
#[target_feature(enable = "avx2,avx512f")]
pub(super) fn sum_four_512(v: &[__m512i; 4]) -> __m128i {
    let lanes = sum_four_by_lane(v);
    let halves = _mm256_add_epi32(
        _mm512_castsi512_si256(lanes),
        _mm512_extracti64x4_epi64::<1>(lanes),
    );
    _mm_add_epi32(
        _mm256_castsi256_si128(halves),
        _mm256_extracti128_si256::<1>(halves),
    )
}

/// Sixteen loads of four words, as four vectors of one word a load.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(load: impl Fn(usize) -> __m128i) -> [__m512i; 4] {
    // Lane l of `rows[i]` is load 4 l + i, so that the unpacking below ends in the loads' order.
    let mut rows = [_mm512_setzero_si512(); 4];
    for (i, rows) in rows.iter_mut().enumerate() {
        let all = _mm512_castsi128_si512(load(i));
        let all = _mm512_inserti32x4::<1>(all, load(4 + i));
        let all = _mm512_inserti32x4::<2>(all, load(8 + i));
        *rows = _mm512_inserti32x4::<3>(all, load(12 + i));
    }
    let low = [
        _mm512_unpacklo_epi32(rows[0], rows[1]),
        _mm512_unpacklo_epi32(rows[2], rows[3]),
    ];
    let high = [
        _mm512_unpackhi_epi32(rows[0], rows[1]),
        _mm512_unpackhi_epi32(rows[2], rows[3]),
    ];
    [
        _mm512_unpacklo_epi64(low[0], low[1]),
        _mm512_unpackhi_epi64(low[0], low[1]),
        _mm512_unpacklo_epi64(high[0], high[1]),
        _mm512_unpackhi_epi64(high[0], high[1]),
    ]
}

/// Activations of each set of at most `limit`, so that all sets are about equal.
pub(super) fn set_of(tokens: usize, limit: usize) -> usize {
    tokens.div_ceil(tokens.div_ceil(limit).max(1)).max(1)
}

/// Prefetches `N` cache lines, the `first` one of those at `ahead` and its successors.
#[inline(always)]
pub(super) fn prefetch_lines<const N: usize>(ahead: *const u8, first: usize) {
    for line in first..first + N {
        // SAFETY: a prefetch reads nothing, whatever the address; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * line).cast()) };
    }
}

/// Prefetches the cache lines of so many bytes, in their order.
pub(super) fn prefetch(start: *const u8, bytes: usize) {
    for line in 0..bytes.div_ceil(64) {
        prefetch_lines::<1>(start, line);
    }
}

/// A byte of either sign.
pub(super) trait Byte {}
impl Byte for u8 {}
impl Byte for i8 {}
