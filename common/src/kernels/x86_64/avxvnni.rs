//! AVX-VNNI: the AVX2 kernels with one instruction for four products, where rows have lanes of
//! their own. In a lone row it saves nothing: a vector holds one sub-block, which has its scale.

use super::avx2::Avx2;
use super::eight_rows;
use super::step::Vnni;
use super::through_avx2;
use crate::kernels::row::RowKernel;
use crate::kernels::sixteen::{Blocks, Sums};
use crate::quant::{BlockQ8, BlockQ8K, SmallBlock, SuperBlock};

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
    const SIXTEEN: bool = true;
    const SIXTEEN_FROM: usize = Avx2::SIXTEEN_FROM;
    const F16_LONE: bool = true;

    fn name(self) -> &'static str {
        "avxvnni"
    }

    through_avx2!();

    fn f16_lone(self, row: &[u8], x: &[f32], ahead: *const u8) -> f32 {
        self.0.f16_lone(row, x, ahead)
    }

    fn q4_k_sixteen(self, w: Blocks<'_>, xs: &[&BlockQ8K], out: &mut [Sums]) {
        // SAFETY: `self` exists, so `detect` found AVX-VNNI, AVX2 and F16C.
        unsafe { eight_rows::q4_k_sixteen::<Vnni>(w, xs, out) }
    }
}
