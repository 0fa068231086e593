//! The kernels for 64-bit ARM: NEON, with dot products of bytes, and with matrix products.
//!
//! The float loops need nothing of their own: NEON is in every such target, so the compiler makes
//! vectors of the 16 lanes, without fusing.

use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

use super::lanes;
use super::row::RowKernel;
use super::sixteen::{Blocks, Places, Sums};
use crate::quant::{BlockQ8, BlockQ8K, IntBlock, PANEL_BLOCK, PanelBlock, Q4K};
use crate::quant::{SmallBlock, SuperBlock};
use crate::quant::{widen_bf16, widen_f16};

mod dot;
mod matrix;
mod panel;
mod probe;
mod small_blocks;
mod super_blocks;

use dot::Dot;

pub(super) use dot::{Base, Dotprod, I8mm};

/// Proof that the CPU has the instructions of `D`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arm<D>(PhantomData<D>);

impl<D: Dot> Arm<D> {
    pub(super) fn detect() -> Option<Self> {
        D::detected().then_some(Self(PhantomData))
    }
}

impl<D: Dot> RowKernel for Arm<D> {
    const SIXTEEN: bool = D::MATRIX;

    fn name(self) -> &'static str {
        D::NAME
    }

    fn dots_f32(self, a: &[f32], bs: &[&[f32]], out: &mut [f32]) {
        lanes::dots_many(a, bs, out);
    }

    fn add_scaled(self, factors: &[f32], xs: &[&[f32]], y: &mut [f32]) {
        lanes::add_scaled(factors, xs, y);
    }

    fn widen_f16(self, row: &[u8], out: &mut [f32]) {
        // SAFETY: every CPU of this architecture has NEON.
        unsafe { wide_f16(row, out) }
    }

    fn widen_bf16(self, row: &[u8], out: &mut [f32]) {
        widen_bf16(row, out);
    }

    fn q4_k(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        // SAFETY: every CPU of this architecture has NEON.
        let unpack = |bytes: &_, codes: &mut _| unsafe { super_blocks::unpack_q4_k(bytes, codes) };
        // SAFETY: every CPU of this architecture has NEON, and `detect` found what `D` needs.
        unsafe { super_blocks::row::<D, Q4K>(row, xs, out, unpack) }
    }

    fn super_blocks<F: SuperBlock>(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        let mut block = IntBlock::ZERO;
        let unpack = |bytes: &F::Bytes, codes: &mut _| {
            F::unpack(bytes, &mut block);
            // SAFETY: every CPU of this architecture has NEON.
            unsafe { super_blocks::load::<F>(&block, codes) }
        };
        // SAFETY: every CPU of this architecture has NEON, and `detect` found what `D` needs.
        unsafe { super_blocks::row::<D, F>(row, xs, out, unpack) }
    }

    fn small_blocks<F: SmallBlock>(self, row: &[u8], xs: &[&[BlockQ8]], out: &mut [f32]) {
        // SAFETY: every CPU of this architecture has NEON, and `detect` found what `D` needs.
        unsafe { small_blocks::row::<D, F>(row, xs, out) }
    }

    fn q4_k_sixteen(self, w: Blocks<'_>, xs: &[&BlockQ8K], out: &mut [Sums]) {
        // SAFETY: every CPU of this architecture has NEON, and `detect` found what `D` needs.
        unsafe { matrix::q4_k_sixteen::<D>(w, xs, out) }
    }

    fn q4_k_panel<const FRESH: bool>(
        self,
        panel: &[PanelBlock],
        xs: &[&BlockQ8K],
        ahead: impl Fn(usize) -> *const u8,
        out: &mut Places<'_>,
    ) {
        let request = |b| self.prefetch(ahead(b), PANEL_BLOCK);
        // SAFETY: every CPU of this architecture has NEON, and `detect` found what `D` needs.
        unsafe { panel::q4_k_panel::<D, FRESH>(panel, xs, request, out) }
    }

    fn prefetch(self, start: *const u8, bytes: usize) {
        for at in (0..bytes).step_by(64) {
            let line = start.wrapping_add(at);
            // SAFETY: a prefetch reads nothing that the program could see, whatever the address.
            unsafe {
                asm!("prfm pldl2keep, [{}]", in(reg) line, options(nostack, readonly));
            }
        }
    }
}

#[target_feature(enable = "neon")]
fn wide_f16(row: &[u8], out: &mut [f32]) {
    let (parts, rest) = row.as_chunks::<8>();
    let (wide, wide_rest) = out.as_chunks_mut::<4>();
    for (bits, to) in parts.iter().zip(wide) {
        let values: float32x4_t;
        // SAFETY: works on registers alone; the instruction is one of NEON.
        unsafe {
            asm!(
                "fcvtl {to:v}.4s, {from:v}.4h",
                to = out(vreg) values,
                from = in(vreg) u64::from_le_bytes(*bits),
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        store_f32(values, to);
    }
    widen_f16(rest, wide_rest);
}

/// 16 bytes.
#[inline]
#[target_feature(enable = "neon")]
fn load_u8(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the reference is valid for 16 bytes and the load needs no alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

/// 16 signed bytes.
#[inline]
#[target_feature(enable = "neon")]
fn load_i8(bytes: &[i8; 16]) -> int8x16_t {
    // SAFETY: the reference is valid for 16 bytes and the load needs no alignment.
    unsafe { vld1q_s8(bytes.as_ptr()) }
}

/// Eight integers of 16 bits.
#[inline]
#[target_feature(enable = "neon")]
fn load_i16(values: &[i16; 8]) -> int16x8_t {
    // SAFETY: the reference is valid for eight integers and the load needs no more alignment.
    unsafe { vld1q_s16(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_f32(values: &[f32; 4]) -> float32x4_t {
    // SAFETY: the reference is valid for four floats and the load needs no more alignment.
    unsafe { vld1q_f32(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store_f32(values: float32x4_t, to: &mut [f32; 4]) {
    // SAFETY: the reference is valid for four floats and the store needs no more alignment.
    unsafe { vst1q_f32(to.as_mut_ptr(), values) };
}

/// Part `i` of a list that is cut into parts of `N`.
#[inline(always)]
fn part<T, const N: usize>(all: &[T], i: usize) -> &[T; N] {
    &all.as_chunks::<N>().0[i]
}
