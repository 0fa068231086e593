//! The one step in which loops with vectors of 256 bits differ: products of bytes, a row a lane.
//!
//! The loops are compiled for AVX2 and generic over the step. An intrinsic of AVX-VNNI could not be
//! inlined there, so that step is spelled out; only sets of CPUs that have it use it.

use std::arch::asm;
use std::arch::x86_64::*;

/// Products of bytes with the instructions of one CPU generation.
pub(super) trait ByteProducts {
    /// How often [`ByteProducts::multiply`] may add to the same products before they are scaled.
    const RUN: usize;

    /// Whether [`ByteProducts::add_scaled`] takes the scale in both halves of its lane, or zero-extended.
    const TWICE: bool;

    /// `products + q * x`, four 4-bit codes of a row a lane.
    ///
    /// # Safety
    /// The CPU has the instructions.
    unsafe fn multiply(products: __m256i, q: __m256i, x: __m256i) -> __m256i;

    /// `sum + scale * products` for each lane, which is a row.
    ///
    /// # Safety
    /// The CPU has the instructions.
    unsafe fn add_scaled(sum: __m256i, products: __m256i, scales: __m256i) -> __m256i;
}

/// Pairs of products in 16 bits: AVX2.
pub(super) struct Madd;

impl ByteProducts for Madd {
    /// Eight pairs are at most 8 * 2 * 15 * 128, which fits in 16 bits.
    const RUN: usize = 8;
    const TWICE: bool = true;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn multiply(products: __m256i, q: __m256i, x: __m256i) -> __m256i {
        _mm256_add_epi16(products, _mm256_maddubs_epi16(q, x))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add_scaled(sum: __m256i, products: __m256i, scales: __m256i) -> __m256i {
        _mm256_add_epi32(sum, _mm256_madd_epi16(products, scales))
    }
}

/// Fours of products in 32 bits: AVX-VNNI.
pub(super) struct Vnni;

impl ByteProducts for Vnni {
    /// 16 products are at most 16 * 15 * 128, so the lower 16 bits of a lane are its value, and
    /// the zero above the scale hides the upper ones.
    const RUN: usize = 4;
    const TWICE: bool = false;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn multiply(products: __m256i, q: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller promises the CPU.
        unsafe { dpbusd(products, q, x) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add_scaled(sum: __m256i, products: __m256i, scales: __m256i) -> __m256i {
        _mm256_add_epi32(sum, _mm256_madd_epi16(products, scales))
    }
}

/// `sum + scale * (q · x)` for each lane: a whole sub-block.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn add_sub_block<S: ByteProducts>(
    sum: __m256i,
    q: &[__m256i; 8],
    x: &[i8; 32],
    scales: __m256i,
) -> __m256i {
    let mut sum = sum;
    for (q, x) in q.chunks(S::RUN).zip(x.chunks(4 * S::RUN)) {
        let mut products = _mm256_setzero_si256();
        for (q, x) in q.iter().zip(x.as_chunks::<4>().0) {
            // SAFETY: the caller promises the CPU.
            products = unsafe { S::multiply(products, *q, broadcast(*x)) };
        }
        // SAFETY: the caller promises the CPU.
        sum = unsafe { S::add_scaled(sum, products, scales) };
    }
    sum
}

/// The same four bytes in every lane.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn broadcast(bytes: [i8; 4]) -> __m256i {
    _mm256_set1_epi32(i32::from_le_bytes(bytes.map(|v| v as u8)))
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
