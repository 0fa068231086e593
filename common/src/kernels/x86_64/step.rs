//! The one step in which kernels of 256 bits differ: products of bytes, a row a lane.
//!
//! The kernels are compiled for AVX2 and generic over the step. An intrinsic of AVX-VNNI could not
//! be inlined there, so that step is spelled out; it is reached by kernels of such CPUs alone.

use std::arch::asm;
use std::arch::x86_64::*;

/// Products of bytes with the instructions of one CPU generation.
pub(super) trait Step {
    /// The scales of a sub-block as [`Step::add_scaled`] wants them; `scales` has one in every
    /// lane, zero-extended.
    ///
    /// # Safety
    /// The CPU has the instructions.
    unsafe fn spread(scales: __m256i) -> __m256i;

    /// `sum + scale * (q · x)` for each lane, which is a row: `q[i]` has four of its 4-bit codes.
    ///
    /// # Safety
    /// The CPU has the instructions.
    unsafe fn add_scaled(sum: __m256i, q: &[__m256i; 8], x: &[i8; 32], scales: __m256i) -> __m256i;
}

/// Pairs of products in 16 bits: AVX2.
pub(super) struct Madd;

impl Step for Madd {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn spread(scales: __m256i) -> __m256i {
        twice(scales)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add_scaled(sum: __m256i, q: &[__m256i; 8], x: &[i8; 32], scales: __m256i) -> __m256i {
        let mut pairs = _mm256_setzero_si256();
        for (q, x) in q.iter().zip(x.as_chunks::<4>().0) {
            // Eight pairs are at most 8 * 2 * 15 * 128, which fits in 16 bits.
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(*q, broadcast(*x)));
        }
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, scales))
    }
}

/// Fours of products in 32 bits: AVX-VNNI.
pub(super) struct Vnni;

impl Step for Vnni {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn spread(scales: __m256i) -> __m256i {
        scales
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add_scaled(sum: __m256i, q: &[__m256i; 8], x: &[i8; 32], scales: __m256i) -> __m256i {
        let mut all = sum;
        for (q, x) in q.as_chunks::<4>().0.iter().zip(x.as_chunks::<16>().0) {
            let mut run = _mm256_setzero_si256();
            for (q, x) in q.iter().zip(x.as_chunks::<4>().0) {
                // SAFETY: the caller promises the CPU.
                run = unsafe { dpbusd(run, *q, broadcast(*x)) };
            }
            // 16 products are at most 16 * 15 * 128, so the lower 16 bits of a lane are its value,
            // and the zero above the scale hides the upper ones.
            all = _mm256_add_epi32(all, _mm256_madd_epi16(run, scales));
        }
        all
    }
}

/// The same four bytes in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(bytes: [i8; 4]) -> __m256i {
    _mm256_set1_epi32(i32::from_le_bytes(bytes.map(|v| v as u8)))
}

/// A small number in both halves of every lane.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn twice(values: __m256i) -> __m256i {
    _mm256_or_si256(values, _mm256_slli_epi32::<16>(values))
}

/// Adds four products of an unsigned with a signed byte to each lane: what
/// `_mm256_dpbusd_avx_epi32` does.
///
/// # Safety
/// The CPU has AVX-VNNI.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dpbusd(mut sum: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
    // SAFETY: the caller promises the CPU, and the instruction works on registers alone.
    unsafe {
        asm!(
            "{{vex}} vpdpbusd {sum}, {unsigned}, {signed}",
            sum = inout(ymm_reg) sum,
            unsigned = in(ymm_reg) unsigned,
            signed = in(ymm_reg) signed,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
