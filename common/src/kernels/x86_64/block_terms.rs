//! What blocks of 256 weights add to a row, from their integer sums.

use std::arch::x86_64::*;

use super::vectors::{load_f32x4, load_i16, store_f32x4, sum_four_256};
use crate::quant::{BlockQ8K, SuperBlock};

/// The first two half floats of a block: `d` and `dmin` of Q4_K.
#[inline]
#[target_feature(enable = "f16c")]
pub(super) fn two_halves(bytes: &[u8; 144]) -> (f32, f32) {
    let bits = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let values = _mm_cvtph_ps(_mm_cvtsi32_si128(bits));
    (
        _mm_cvtss_f32(values),
        _mm_cvtss_f32(_mm_movehdup_ps(values)),
    )
}

/// Eight mins as 16 lanes of 16 bits, each twice: a sub-block of 32 has two activation sums.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn spread_mins(mins: u64) -> __m256i {
    let mins = _mm_cvtsi64_si128(mins as i64);
    _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(mins, mins))
}

/// The products of mins and activation sums, in eight parts.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum_mins(mins: __m256i, x: &BlockQ8K) -> __m256i {
    _mm256_madd_epi16(mins, load_i16(&x.bsums))
}

/// All but the integer sums of up to four products of a super-block with an activation block.
pub(super) struct Factors {
    d8: [f32; 4],
    d: [f32; 4],
    dmin: [f32; 4],
    mins: [__m256i; 4],
}

impl Factors {
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn zero() -> Self {
        Self {
            d8: [0.0; 4],
            d: [0.0; 4],
            dmin: [0.0; 4],
            mins: [_mm256_setzero_si256(); 4],
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn set(&mut self, i: usize, d8: f32, d: f32, dmin: f32, mins: __m256i) {
        self.d8[i] = d8;
        self.d[i] = d;
        self.dmin[i] = dmin;
        self.mins[i] = mins;
    }

    /// What each of the four adds to its row, as the scalar definition has it.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn terms<F: SuperBlock>(&self, sums: __m128i) -> [f32; 4] {
        let d8 = load_f32x4(&self.d8);
        let scale = _mm_mul_ps(_mm_mul_ps(d8, load_f32x4(&self.d)), _mm_set1_ps(F::UNIT));
        let mut terms = _mm_mul_ps(scale, _mm_cvtepi32_ps(sums));
        if F::HAS_MINS {
            let mins = _mm_cvtepi32_ps(sum_four_256(&self.mins));
            let scale = _mm_mul_ps(d8, load_f32x4(&self.dmin));
            terms = _mm_sub_ps(terms, _mm_mul_ps(scale, mins));
        }
        let mut out = [0.0; 4];
        store_f32x4(terms, &mut out);
        out
    }
}
