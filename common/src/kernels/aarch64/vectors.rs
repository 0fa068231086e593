//! Loads, stores and unpacking of vectors.

use std::arch::aarch64::*;

use crate::quant::PanelBlock;

/// 16 bytes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_u8(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the reference is valid for 16 bytes and the load needs no alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

/// 16 signed bytes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_i8(bytes: &[i8; 16]) -> int8x16_t {
    // SAFETY: the reference is valid for 16 bytes and the load needs no alignment.
    unsafe { vld1q_s8(bytes.as_ptr()) }
}

/// Eight integers of 16 bits.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_i16(values: &[i16; 8]) -> int16x8_t {
    // SAFETY: the reference is valid for eight integers and the load needs no more alignment.
    unsafe { vld1q_s16(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_f32(values: &[f32; 4]) -> float32x4_t {
    // SAFETY: the reference is valid for four floats and the load needs no more alignment.
    unsafe { vld1q_f32(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store_f32(values: float32x4_t, to: &mut [f32; 4]) {
    // SAFETY: the reference is valid for four floats and the store needs no more alignment.
    unsafe { vst1q_f32(to.as_mut_ptr(), values) };
}

/// Part `i` of a list that is cut into parts of `N`.
#[inline(always)]
pub(super) fn part<T, const N: usize>(all: &[T], i: usize) -> &[T; N] {
    &all.as_chunks::<N>().0[i]
}

/// Word `i` of the rows `4 * four..4 * four + 4`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn words(block: &PanelBlock, i: usize, four: usize) -> uint8x16_t {
    let bytes: &[[u8; 4]; 4] = part(&block[i], four);
    load_u8(part(bytes.as_flattened(), 0))
}

/// The low and the high nibbles of every byte.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn split(packed: uint8x16_t) -> [int8x16_t; 2] {
    let low = vandq_u8(packed, vdupq_n_u8(15));
    [
        vreinterpretq_s8_u8(low),
        vreinterpretq_s8_u8(vshrq_n_u8::<4>(packed)),
    ]
}
