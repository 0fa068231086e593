//! Sixteen Q4_K rows, a row a lane: what their blocks are unpacked to. AVX-512.

use std::arch::x86_64::*;

use super::vectors::{part, transpose};
use crate::kernels::operands::q4_k_blocks::BlockRows;

/// A sub-block of 32 weights of every row, four of them a vector.
pub(super) type SubBlock = [__m512i; 8];

/// 16 bytes at `16 * at` of every row, as four vectors of one word a row.
#[inline]
#[target_feature(enable = "avx512f")]
fn words(w: &BlockRows<'_, 16>, at: usize) -> [__m512i; 4] {
    let load = |r: usize| {
        let bytes: &[u8; 16] = part(w.row(r), at);
        // SAFETY: the reference is valid for 16 bytes, which need no alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    };
    transpose(load)
}

/// Sub-blocks `2 p` and `2 p + 1`, each four weights of every row a vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn nibbles(w: &BlockRows<'_, 16>, p: usize) -> [SubBlock; 2] {
    let mut q = [[_mm512_setzero_si512(); 8]; 2];
    for half in 0..2 {
        for (i, packed) in words(w, 1 + 2 * p + half).into_iter().enumerate() {
            let at = 4 * half + i;
            [q[0][at], q[1][at]] = split(packed);
        }
    }
    q
}

/// The low and the high nibbles of every byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn split(packed: __m512i) -> [__m512i; 2] {
    let mask = _mm512_set1_epi8(15);
    let high = _mm512_srli_epi16::<4>(packed);
    [_mm512_and_si512(packed, mask), _mm512_and_si512(high, mask)]
}

/// A small number in both halves of every lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn twice(values: __m512i) -> __m512i {
    _mm512_or_si512(values, _mm512_slli_epi32::<16>(values))
}

/// Two numbers in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn two(x: &[i16; 16], i: usize) -> __m512i {
    let [a, b] = part::<_, 2>(x, i).map(|v| u32::from(v as u16));
    _mm512_set1_epi32((a | b << 16) as i32)
}

/// Four bytes in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn four(x: &[i8; 32], i: usize) -> __m512i {
    let bytes: &[i8; 4] = part(x, i);
    _mm512_set1_epi32(i32::from_le_bytes(bytes.map(|v| v as u8)))
}

/// Scales16 of the blocks.
pub(super) struct Scales16 {
    /// Sub-blocks 0..4, and 4..8, one a byte.
    scales: [__m512i; 2],
    mins: [__m512i; 2],
    d: __m512,
    dmin: __m512,
}

impl Scales16 {
    /// Those of plain rows.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn of_rows(w: &BlockRows<'_, 16>) -> Self {
        Self::new(words(w, 0))
    }

    /// From the first four words of each row.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new([halves, scales, mins, rest]: [__m512i; 4]) -> Self {
        let six = _mm512_set1_epi8(0x3f);
        let four = _mm512_set1_epi8(0x0f);
        let top = _mm512_set1_epi8(0x30);
        let upper = |v| _mm512_and_si512(_mm512_srli_epi32::<2>(v), top);
        let low = _mm512_and_si512(rest, four);
        let high = _mm512_and_si512(_mm512_srli_epi32::<4>(rest), four);
        let float = |v| _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
        Self {
            scales: [
                _mm512_and_si512(scales, six),
                _mm512_or_si512(low, upper(scales)),
            ],
            mins: [
                _mm512_and_si512(mins, six),
                _mm512_or_si512(high, upper(mins)),
            ],
            d: float(halves),
            dmin: float(_mm512_srli_epi32::<16>(halves)),
        }
    }

    /// The scale of sub-block `j`, zero-extended.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn scale(&self, j: usize) -> __m512i {
        byte(self.scales[j / 4], j % 4)
    }

    /// The min of each sub-block, in both halves of its lane.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn all_mins(&self) -> [__m512i; 8] {
        let mut mins = [_mm512_setzero_si512(); 8];
        for (j, min) in mins.iter_mut().enumerate() {
            *min = twice(byte(self.mins[j / 4], j % 4));
        }
        mins
    }

    /// What the two integer sums of every row come to.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn terms(&self, sum: __m512i, mins: __m512i, d8: f32) -> __m512 {
        let d8 = _mm512_set1_ps(d8);
        let value = _mm512_mul_ps(_mm512_mul_ps(d8, self.d), _mm512_cvtepi32_ps(sum));
        let least = _mm512_mul_ps(_mm512_mul_ps(d8, self.dmin), _mm512_cvtepi32_ps(mins));
        _mm512_sub_ps(value, least)
    }
}

/// Byte `i` of every word.
#[inline]
#[target_feature(enable = "avx512f")]
fn byte(words: __m512i, i: usize) -> __m512i {
    let shift = _mm_cvtsi32_si128(8 * i as i32);
    _mm512_and_si512(_mm512_srl_epi32(words, shift), _mm512_set1_epi32(255))
}
