//! The one step in which the ARM kernels differ: products of signed bytes, added in four sums.
//!
//! The instructions newer than NEON are spelled out, since their intrinsics are not stable. They
//! name their extension themselves, so that generic code compiled for any ARM can hold them; it
//! is reached on CPUs that have them alone.

use std::arch::aarch64::*;
use std::arch::asm;
use std::arch::is_aarch64_feature_detected;
use std::fmt::Debug;

use crate::kernels::instruction_set::IsaName;

/// Products of bytes with the instructions of one CPU generation.
pub(in crate::kernels) trait Dot: Copy + Debug + Send + Sync {
    /// The set that is named by these instructions.
    const ISA: IsaName;
    /// Whether one instruction multiplies two rows with two activations.
    const MATRIX: bool = false;

    fn detected() -> bool;

    /// Adds the products of 16 signed bytes, exactly for all of them.
    ///
    /// # Safety
    /// [`Dot::detected`] is true.
    unsafe fn dot(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t;

    /// [`Dot::dot`] for weights between -64 and 63.
    ///
    /// # Safety
    /// [`Dot::detected`] is true.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn dot_codes(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the caller promises the CPU.
        unsafe { Self::dot(sum, w, x) }
    }

    /// [`Dot::dot_codes`], where each sum takes the products of four bytes that follow each other.
    ///
    /// # Safety
    /// [`Dot::detected`] is true.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn fours(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the caller promises the CPU.
        unsafe { Self::dot(sum, w, x) }
    }

    /// Adds `w · xᵀ`, each of two rows of eight signed bytes; lane `2 r + t` is row `r` times
    /// row `t`.
    ///
    /// # Safety
    /// [`Dot::detected`] and [`Dot::MATRIX`] are true.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn two_by_two(sum: int32x4_t, _w: int8x16_t, _x: int8x16_t) -> int32x4_t {
        sum
    }
}

/// NEON alone: products and their pairs in 16 bits.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Neon;

impl Dot for Neon {
    const ISA: IsaName = IsaName::Neon;

    fn detected() -> bool {
        true
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn dot(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // -128 times -128 twice would pass 16 bits, so each product is widened on its own.
        let sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(w), vget_low_s8(x)));
        vpadalq_s16(sum, vmull_high_s8(w, x))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn dot_codes(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // Two products are at most 2 * 64 * 128.
        let pairs = vmull_s8(vget_low_s8(w), vget_low_s8(x));
        vpadalq_s16(sum, vmlal_high_s8(pairs, w, x))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn fours(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
        // Two products are at most 2 * 64 * 128.
        vpadalq_s16(sum, vpaddq_s16(low, vmull_high_s8(w, x)))
    }
}

/// Dot products of four bytes.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Dotprod;

impl Dot for Dotprod {
    const ISA: IsaName = IsaName::Dotprod;

    fn detected() -> bool {
        is_aarch64_feature_detected!("dotprod")
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn dot(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the caller promises the CPU, and the instruction works on registers alone.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {sum:v}.4s, {w:v}.16b, {x:v}.16b",
                sum = inout(vreg) sum,
                w = in(vreg) w,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }
}

/// Products of small matrices of bytes, and dot products.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct I8mm;

impl Dot for I8mm {
    const ISA: IsaName = IsaName::I8mm;
    const MATRIX: bool = true;

    fn detected() -> bool {
        is_aarch64_feature_detected!("i8mm") && Dotprod::detected()
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn dot(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the caller promises the CPU, which has dot products too.
        unsafe { Dotprod::dot(sum, w, x) }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn two_by_two(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the caller promises the CPU, and the instruction works on registers alone.
        unsafe {
            asm!(
                ".arch_extension i8mm",
                "smmla {sum:v}.4s, {w:v}.16b, {x:v}.16b",
                sum = inout(vreg) sum,
                w = in(vreg) w,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }
}
