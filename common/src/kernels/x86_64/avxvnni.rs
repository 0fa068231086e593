//! AVX-VNNI: the AVX2 kernels with one instruction for four products, where rows have lanes of
//! their own. In a lone row it saves nothing: a vector holds one sub-block, which has its scale.

use super::avx2::Avx2;
use super::step::Vnni;
use super::through_avx2;
use super::{eight_rows, half_panel};
use crate::kernels::q4_k::{Four, Rows};
use crate::kernels::row::RowKernel;
use crate::kernels::sixteen::Places;
use crate::quant::{BlockQ8, BlockQ8K, PanelBlock, SmallBlock, SuperBlock};

/// Proof that the CPU has AVX-VNNI, AVX2 and F16C.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct AvxVnni(Avx2);

impl AvxVnni {
    pub(in crate::kernels) fn detect() -> Option<Self> {
        let avx2 = Avx2::detect()?;
        is_x86_feature_detected!("avxvnni").then_some(Self(avx2))
    }
}

impl RowKernel for AvxVnni {
    const EIGHT: bool = true;
    const TERMS: bool = true;
    const F16_LONE: bool = true;

    fn name(self) -> &'static str {
        "avxvnni"
    }

    through_avx2!();

    fn f16_lone(self, row: &[u8], x: &[f32], ahead: *const u8) -> f32 {
        self.0.f16_lone(row, x, ahead)
    }

    fn q4_k_eight(self, w: Rows<'_, 8>, xs: &[&BlockQ8K], ahead: *const u8, out: &mut [[f32; 8]]) {
        // SAFETY: `self` exists, so `detect` found AVX-VNNI, AVX2 and F16C.
        unsafe { eight_rows::q4_k_eight::<Vnni>(w, xs, ahead, out) }
    }

    fn q4_k_panel<const FRESH: bool>(
        self,
        panel: &[PanelBlock],
        xs: &[&BlockQ8K],
        ahead: impl Fn(usize) -> *const u8,
        out: &mut Places<'_>,
    ) {
        // SAFETY: `self` exists, so `detect` found AVX-VNNI, AVX2 and F16C.
        unsafe { half_panel::q4_k_panel::<Vnni, FRESH>(panel, xs, ahead, out) }
    }

    fn q4_k_terms(
        self,
        row: &[u8],
        x: &[&BlockQ8K],
        fours: &[Four],
        ahead: *const u8,
        terms: &mut [f32],
    ) {
        self.0.q4_k_terms(row, x, fours, ahead, terms);
    }
}
