//! The one step in which kernels of 256 bits differ: products of bytes, added in eight sums.
//!
//! The kernels are compiled for AVX2 and generic over the step. An intrinsic of AVX-VNNI could not
//! be inlined there, so that step is spelled out; it is reached by kernels of such CPUs alone.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{load_128, load_256, part};

/// Products of bytes with the instructions of one CPU generation.
pub(super) trait Step {
    /// The scale of a sub-block as [`Step::add_scaled`] wants it.
    ///
    /// # Safety
    /// The CPU has the instructions.
    unsafe fn spread(scale: u8) -> __m256i;

    /// `sum + scale * (q · x)` with 4-bit codes `q` and signed bytes `x`, exactly.
    ///
    /// # Safety
    /// The CPU has the instructions.
    unsafe fn add_scaled(sum: __m256i, q: __m256i, x: __m256i, scale: __m256i) -> __m256i;

    /// The products of 32 signed bytes; exact for -128 on both sides.
    ///
    /// # Safety
    /// The CPU has the instructions.
    unsafe fn dot_signed(w: &[i8; 32], x: &[i8; 32]) -> __m256i;
}

/// Pairs of products in 16 bits: AVX2.
pub(super) struct Madd;

impl Step for Madd {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn spread(scale: u8) -> __m256i {
        _mm256_set1_epi16(i16::from(scale))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add_scaled(sum: __m256i, q: __m256i, x: __m256i, scale: __m256i) -> __m256i {
        // A pair of products is at most 2 * 15 * 128.
        let pairs = _mm256_maddubs_epi16(q, x);
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, scale))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn dot_signed(w: &[i8; 32], x: &[i8; 32]) -> __m256i {
        let mut halves = [_mm256_setzero_si256(); 2];
        for (i, half) in halves.iter_mut().enumerate() {
            let w = _mm256_cvtepi8_epi16(load_128(part(w, i)));
            let x = _mm256_cvtepi8_epi16(load_128(part(x, i)));
            *half = _mm256_madd_epi16(w, x);
        }
        _mm256_add_epi32(halves[0], halves[1])
    }
}

/// Fours of products in 32 bits: AVX-VNNI.
pub(super) struct Vnni;

impl Step for Vnni {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn spread(scale: u8) -> __m256i {
        _mm256_set1_epi32(i32::from(scale))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add_scaled(sum: __m256i, q: __m256i, x: __m256i, scale: __m256i) -> __m256i {
        // SAFETY: the caller promises the CPU.
        let fours = unsafe { dpbusd(_mm256_setzero_si256(), q, x) };
        // Four products are at most 4 * 15 * 128, so the lower 16 bits of a lane are its value,
        // and the zero above the scale hides the upper ones.
        _mm256_add_epi32(sum, _mm256_madd_epi16(fours, scale))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn dot_signed(w: &[i8; 32], x: &[i8; 32]) -> __m256i {
        let w = load_256(w);
        // As unsigned bytes, these are -128 and the activations plus 128. The first sum is below
        // 128 * 128 * 4, the second one below 255 * 128 * 4.
        let raise = _mm256_set1_epi8(-128);
        // SAFETY: the caller promises the CPU.
        let offset = unsafe { dpbusd(_mm256_setzero_si256(), raise, w) };
        let raised = _mm256_xor_si256(load_256(x), raise);
        // SAFETY: the caller promises the CPU.
        let sum = unsafe { dpbusd(_mm256_setzero_si256(), raised, w) };
        _mm256_sub_epi32(sum, offset)
    }
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
