//! AVX-VNNI: the AVX2 kernels with one instruction for four products.

use super::avx2::{self, Avx2};
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
    const SIXTEEN: bool = Avx2::SIXTEEN;

    fn name(self) -> &'static str {
        "avxvnni"
    }

    through_avx2!();

    fn q4_k(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX-VNNI, AVX2 and F16C.
        unsafe { avx2::q4_k::<Vnni>(row, xs, out) }
    }

    fn small_blocks<F: SmallBlock>(self, row: &[u8], xs: &[&[BlockQ8]], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX-VNNI, AVX2 and F16C.
        unsafe { avx2::small_rows::<F, Vnni>(row, xs, out) }
    }

    fn q4_k_sixteen(self, w: Blocks<'_>, xs: &[&BlockQ8K], out: &mut [Sums]) {
        self.0.q4_k_sixteen(w, xs, out);
    }
}
