//! The kernels for x86-64: AVX2 and AVX-512, each with and without VNNI.

use std::arch::x86_64::*;

use crate::quant::{BlockQ8K, SuperBlock};

mod along;
mod along_256;
mod avx2;
mod avx512;
mod avx512bw;
mod avxvnni;
mod eight;
mod eight_rows;
mod f16_lone;
mod f32_grid;
mod half_panel;
mod panel;
mod q8_lone;
mod q8_panel;
mod sixteen;
mod step;
mod two_bits;

pub(super) use avx2::Avx2;
pub(super) use avx512::Avx512;
pub(super) use avx512bw::Avx512Bw;
pub(super) use avxvnni::AvxVnni;

/// What kernels that hold an [`Avx2`] leave to it.
macro_rules! through_avx2 {
    () => {
        fn vectorised<R>(self, work: impl FnOnce() -> R) -> R {
            self.0.vectorised(work)
        }

        fn dots_f32(self, a: &[f32], bs: &[&[f32]], out: &mut [f32]) {
            self.0.dots_f32(a, bs, out);
        }

        fn add_scaled(self, factors: &[f32], xs: &[&[f32]], y: &mut [f32]) {
            self.0.add_scaled(factors, xs, y);
        }

        fn widen_f16(self, row: &[u8], out: &mut [f32]) {
            self.0.widen_f16(row, out);
        }

        fn widen_bf16(self, row: &[u8], out: &mut [f32]) {
            self.0.widen_bf16(row, out);
        }

        fn q4_k(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
            self.0.q4_k(row, xs, out);
        }

        fn q2_k(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
            self.0.q2_k(row, xs, out);
        }

        fn iq2_xxs(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
            self.0.iq2_xxs(row, xs, out);
        }

        fn small_blocks<F: SmallBlock>(self, row: &[u8], xs: &[&[BlockQ8]], out: &mut [f32]) {
            self.0.small_blocks::<F>(row, xs, out);
        }

        fn super_blocks<F: SuperBlock>(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
            self.0.super_blocks::<F>(row, xs, out);
        }

        fn prefetch(self, start: *const u8, bytes: usize) {
            self.0.prefetch(start, bytes);
        }
    };
}
use through_avx2;

/// Part `i` of a list that is cut into parts of `N`.
#[inline(always)]
fn part<T, const N: usize>(all: &[T], i: usize) -> &[T; N] {
    &all.as_chunks::<N>().0[i]
}

/// 32 bytes, signed or not.
#[inline]
#[target_feature(enable = "avx")]
fn load_256<T: Byte>(bytes: &[T; 32]) -> __m256i {
    // SAFETY: the reference is valid for 32 bytes and the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// 16 integers of 16 bits.
#[inline]
#[target_feature(enable = "avx")]
fn load_i16(values: &[i16; 16]) -> __m256i {
    // SAFETY: the reference is valid for 32 bytes and the load needs no alignment.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

/// 16 signed bytes.
#[inline]
#[target_feature(enable = "sse2")]
fn load_128(bytes: &[i8; 16]) -> __m128i {
    // SAFETY: the reference is valid for 16 bytes and the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Eight half floats.
#[inline]
#[target_feature(enable = "sse2")]
fn load_halves(bits: &[u8; 16]) -> __m128i {
    // SAFETY: the reference is valid for 16 bytes and the load needs no alignment.
    unsafe { _mm_loadu_si128(bits.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "sse2")]
fn store_f32x4(values: __m128, to: &mut [f32; 4]) {
    // SAFETY: the reference is valid for four floats and the store needs no alignment.
    unsafe { _mm_storeu_ps(to.as_mut_ptr(), values) }
}

#[inline]
#[target_feature(enable = "sse2")]
fn load_f32x4(values: &[f32; 4]) -> __m128 {
    // SAFETY: the reference is valid for four floats and the load needs no alignment.
    unsafe { _mm_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_f32x16(values: &[f32; 16]) -> __m512 {
    // SAFETY: the reference is valid for 16 floats and the load needs no alignment.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_f32x16(values: __m512, to: &mut [f32; 16]) {
    // SAFETY: the reference is valid for 16 floats and the store needs no alignment.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), values) }
}

/// The sums of four vectors, in their order.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_four_256(v: &[__m256i; 4]) -> __m128i {
    let pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    _mm_add_epi32(
        _mm256_castsi256_si128(pairs),
        _mm256_extracti128_si256::<1>(pairs),
    )
}

/// The first two half floats of a block: `d` and `dmin` of Q4_K.
#[inline]
#[target_feature(enable = "f16c")]
fn two_halves(bytes: &[u8; 144]) -> (f32, f32) {
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
fn spread_mins(mins: u64) -> __m256i {
    let mins = _mm_cvtsi64_si128(mins as i64);
    _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(mins, mins))
}

/// The products of mins and activation sums, in eight parts.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_mins(mins: __m256i, x: &BlockQ8K) -> __m256i {
    _mm256_madd_epi16(mins, load_i16(&x.bsums))
}

/// All but the integer sums of up to four products of a super-block with an activation block.
struct Factors {
    d8: [f32; 4],
    d: [f32; 4],
    dmin: [f32; 4],
    mins: [__m256i; 4],
}

impl Factors {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn zero() -> Self {
        Self {
            d8: [0.0; 4],
            d: [0.0; 4],
            dmin: [0.0; 4],
            mins: [_mm256_setzero_si256(); 4],
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn set(&mut self, i: usize, d8: f32, d: f32, dmin: f32, mins: __m256i) {
        self.d8[i] = d8;
        self.d[i] = d;
        self.dmin[i] = dmin;
        self.mins[i] = mins;
    }

    /// What each of the four adds to its row, as the scalar definition has it.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn terms<F: SuperBlock>(&self, sums: __m128i) -> [f32; 4] {
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

/// A byte of either sign.
trait Byte {}
impl Byte for u8 {}
impl Byte for i8 {}
