//! AVX-VNNI: the loops of AVX2 with one instruction for four products, where rows have lanes of
//! their own. In a GEMV it saves nothing: a vector holds one sub-block, which has its scale.

use super::avx2::Avx2;
use super::byte_products::Vnni;
use super::{peak, q4_k_gemm_8rows_256, q4_k_panel_gemm_256};
use crate::kernels::instruction_set::{InstructionSet, IsaName};
use crate::kernels::operands::q4_k_blocks::{BlockRows, PanelResults};
use crate::quant::{BlockQ8K, PanelBlock};

/// Proof that the CPU has AVX-VNNI, AVX2 and F16C.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct AvxVnni(Avx2);

impl AvxVnni {
    pub(in crate::kernels) fn detect() -> Option<Self> {
        let avx2 = Avx2::detect()?;
        is_x86_feature_detected!("avxvnni").then_some(Self(avx2))
    }
}

impl InstructionSet for AvxVnni {
    type Base = Avx2;

    const ISA: IsaName = IsaName::AvxVnni;

    fn base(self) -> Avx2 {
        self.0
    }

    fn q2_k(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        self.0.q2_k(row, xs, out);
    }

    fn iq2_xxs(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        self.0.iq2_xxs(row, xs, out);
    }

    fn q4_k_gemm_8rows(
        self,
        w: BlockRows<'_, 8>,
        xs: &[&BlockQ8K],
        ahead: *const u8,
        out: &mut [[f32; 8]],
    ) {
        // SAFETY: `self` exists, so `detect` found AVX-VNNI, AVX2 and F16C.
        unsafe { q4_k_gemm_8rows_256::q4_k_gemm_8rows::<Vnni>(w, xs, ahead, out) }
    }

    fn q4_k_panel_gemm<const FRESH: bool>(
        self,
        panel: &[PanelBlock],
        xs: &[&BlockQ8K],
        ahead: impl Fn(usize) -> *const u8,
        out: &mut PanelResults<'_>,
    ) {
        // SAFETY: `self` exists, so `detect` found AVX-VNNI, AVX2 and F16C.
        unsafe { q4_k_panel_gemm_256::q4_k_panel_gemm::<Vnni, FRESH>(panel, xs, ahead, out) }
    }

    fn multiply_bytes(self, rounds: u32) -> Option<u64> {
        // SAFETY: `self` exists, so `detect` found AVX-VNNI, AVX2 and F16C.
        Some(unsafe { peak::multiply_avxvnni(rounds) })
    }
}
