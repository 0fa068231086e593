//! What blocks of 256 weights add to a row, from their integer sums.

use std::arch::x86_64::*;

use super::vectors::{load_f32x4, load_i16, prefetch_lines, store_f32x4, sum_four_256};
use crate::kernels::operands::q4_k_blocks::FourBlocks;
use crate::kernels::scalar;
use crate::quant::{BlockQ8K, Q4K, SuperBlock};

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

/// GEMV of Q4_K: `terms[b] = row[b] · x[b]` by `four_terms`, prefetching a row from `ahead`. It is
/// inlined into functions that are compiled for an instruction set.
#[inline(always)]
pub(super) fn gemv_by_four_blocks(
    row: &[u8],
    x: &[&BlockQ8K],
    fours: &[FourBlocks],
    ahead: *const u8,
    terms: &mut [f32],
    four_terms: impl Fn(&[[u8; 144]; 4], &FourBlocks) -> [f32; 4],
) {
    let (blocks, rest) = Q4K::blocks(row).as_chunks::<4>();
    let (out, out_rest) = terms.as_chunks_mut::<4>();
    for (i, ((w, x), out)) in blocks.iter().zip(fours).zip(out).enumerate() {
        prefetch_lines::<9>(ahead, 9 * i);
        *out = four_terms(w, x);
    }
    let x_rest = &x[x.len() - rest.len().min(x.len())..];
    scalar::q4_k_terms(rest.as_flattened(), x_rest, out_rest);
}

/// What four Q4_K blocks add to their row: `halves` has their `d` and `dmin`, `sums` and `mins` the
/// integer sums.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn q4_k_four_terms(
    halves: __m128i,
    d8: &[f32; 4],
    sums: __m128i,
    mins: __m128i,
) -> [f32; 4] {
    let halves = _mm256_cvtph_ps(halves);
    let (low, high) = (
        _mm256_castps256_ps128(halves),
        _mm256_extractf128_ps::<1>(halves),
    );
    let d = _mm_shuffle_ps::<0b10_00_10_00>(low, high);
    let dmin = _mm_shuffle_ps::<0b11_01_11_01>(low, high);
    let d8 = load_f32x4(d8);
    let value = _mm_mul_ps(_mm_mul_ps(d8, d), _mm_cvtepi32_ps(sums));
    let least = _mm_mul_ps(_mm_mul_ps(d8, dmin), _mm_cvtepi32_ps(mins));
    let mut out = [0.0; 4];
    store_f32x4(_mm_sub_ps(value, least), &mut out);
    out
}
