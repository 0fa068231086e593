//! The instruction sets of 64-bit ARM: NEON, with dot products of bytes, and with matrix products.
//!
//! The float loops need nothing of their own: NEON is in every such target, so the compiler makes
//! vectors of the 16 lanes, without fusing.

use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

use super::instruction_set::{InstructionSet, IsaName};
use super::operands::q4_k_blocks::{BlockRows, PanelResults, Q4KRowSums};
use super::scalar::Scalar;
use crate::quant::{BlockQ8, BlockQ8K, IntBlock, PANEL_BLOCK, PanelBlock, Q4K};
use crate::quant::{SmallBlock, SuperBlock, widen_f16};

mod byte_dots;
mod peak;
mod q4_k_gemm_16rows;
mod q4_k_panel_gemm;
mod small_blocks;
mod super_blocks;
mod vectors;

use byte_dots::Dot;
use vectors::store_f32;

pub(super) use byte_dots::{Dotprod, I8mm, Neon};

/// Proof that the CPU has the instructions of `D`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arm<D>(PhantomData<D>);

impl<D: Dot> Arm<D> {
    pub(super) fn detect() -> Option<Self> {
        D::detected().then_some(Self(PhantomData))
    }
}

impl<D: Dot> InstructionSet for Arm<D> {
    type Base = Scalar;

    const ISA: IsaName = D::ISA;

    fn base(self) -> Scalar {
        Scalar
    }

    fn widen_f16(self, row: &[u8], out: &mut [f32]) {
        // SAFETY: every CPU of this architecture has NEON.
        unsafe { wide_f16(row, out) }
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

    fn q4_k_gemm_16rows(
        self,
        w: BlockRows<'_, 16>,
        xs: &[&BlockQ8K],
        _ahead: *const u8,
        out: &mut [Q4KRowSums],
    ) {
        // SAFETY: every CPU of this architecture has NEON, and `detect` found what `D` needs.
        unsafe { q4_k_gemm_16rows::q4_k_gemm_16rows::<D>(w.all(), xs, out) }
    }

    fn q4_k_panel_gemm<const FRESH: bool>(
        self,
        panel: &[PanelBlock],
        xs: &[&BlockQ8K],
        ahead: impl Fn(usize) -> *const u8,
        out: &mut PanelResults<'_>,
    ) {
        let prefetch = |b| self.prefetch(ahead(b), PANEL_BLOCK);
        // SAFETY: every CPU of this architecture has NEON, and `detect` found what `D` needs.
        unsafe { q4_k_panel_gemm::q4_k_panel_gemm::<D, FRESH>(panel, xs, prefetch, out) }
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

    fn multiply_bytes(self, rounds: u32) -> Option<u64> {
        // SAFETY: every CPU of this architecture has NEON, and `detect` found what `D` needs.
        Some(unsafe { peak::multiply::<D>(rounds) })
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
