//! A loop that only multiplies.

use std::arch::aarch64::*;
use std::arch::asm;
use std::hint::black_box;

use super::byte_dots::Dot;

/// Sums in flight: more than latency times units, so that the units are always busy.
const SUMS: usize = 16;

/// Multiplies and adds bytes in registers; returns the operations done, two for a product.
///
/// # Safety
/// [`Dot::detected`] is true.
#[target_feature(enable = "neon")]
pub(super) unsafe fn multiply<D: Dot>(rounds: u32) -> u64 {
    let mut sums = [vdupq_n_s32(0); SUMS];
    let x = vdupq_n_s8(-7);
    let mut w = vdupq_n_s8(9);
    for _ in 0..rounds {
        for sum in &mut sums {
            // SAFETY: no instruction; the compiler has to take `w` for a new value.
            unsafe { asm!("/* {0:v} */", inout(vreg) w, options(nomem, nostack)) };
            // SAFETY: the caller promises the CPU.
            *sum = unsafe {
                match D::MATRIX {
                    true => D::two_by_two(*sum, w, x),
                    false => D::dot_codes(*sum, w, x),
                }
            };
        }
    }
    black_box(sums);
    let products = if D::MATRIX { 32 } else { 16 };
    u64::from(rounds) * SUMS as u64 * 2 * products
}
