//! AVX-512 (F, BW, VL, DQ) without VNNI: wide vectors for sixteen rows of Q4_K, where the
//! products are; the rest is AVX2's.

use super::avx2::Avx2;
use super::q4_k_gemm_16rows_512::madd;
use super::{f16_gemv, f32_gemm, peak};
use crate::kernels::instruction_set::{InstructionSet, IsaName};
use crate::kernels::operands::q4_k_blocks::{BlockRows, PanelResults, Q4KRowSums};
use crate::quant::{BlockQ8K, PanelBlock};

/// Proof that the CPU has what the functions below enable, AVX2 and F16C.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Avx512(Avx2);

impl Avx512 {
    pub(in crate::kernels) fn detect() -> Option<Self> {
        let avx2 = Avx2::detect()?;
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        found.then_some(Self(avx2))
    }
}

impl InstructionSet for Avx512 {
    type Base = Avx2;

    const ISA: IsaName = IsaName::Avx512;

    fn base(self) -> Avx2 {
        self.0
    }

    fn f16_gemv(self, row: &[u8], x: &[f32], ahead: *const u8) -> f32 {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { f16_gemv::f16_gemv_512(row, x, ahead) }
    }

    fn dots_grid(self, a: &[&[f32]], b: &[&[f32]], out: &mut [f32], stride: usize) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { f32_gemm::dots_grid(a, b, out, stride) }
    }

    fn add_scaled_grid(self, factors: &[f32], stride: usize, xs: &[&[f32]], ys: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { f32_gemm::add_scaled_grid(factors, stride, xs, ys) }
    }

    fn q2_k(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        self.0.q2_k(row, xs, out);
    }

    fn iq2_xxs(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        self.0.iq2_xxs(row, xs, out);
    }

    fn q4_k_gemm_16rows(
        self,
        w: BlockRows<'_, 16>,
        xs: &[&BlockQ8K],
        ahead: *const u8,
        out: &mut [Q4KRowSums],
    ) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { madd::q4_k_gemm_16rows(w, xs, ahead, out) }
    }

    fn q4_k_panel_gemm<const FRESH: bool>(
        self,
        panel: &[PanelBlock],
        xs: &[&BlockQ8K],
        ahead: impl Fn(usize) -> *const u8,
        out: &mut PanelResults<'_>,
    ) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { madd::q4_k_panel_gemm::<FRESH>(panel, xs, ahead, out) }
    }

    fn read_through(self, bytes: &[u8]) -> u64 {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { peak::read_avx512(bytes) }
    }

    fn multiply_bytes(self, rounds: u32) -> Option<u64> {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        Some(unsafe { peak::multiply_avx512(rounds) })
    }
}
