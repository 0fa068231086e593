//! AVX2 (with F16C, which every such CPU has).

use std::arch::x86_64::*;

use super::byte_products::Madd;
use super::q4_k_panel_gemm_256;
use super::row_vectors::{RowVectors, row_loops};
use super::vectors::{
    load_128, load_256, load_i16, part, prefetch, store_f32x4, sum_four_256, widen_f16,
};
use super::{f16_gemv, peak, q2_k_iq2_xxs, q4_k_gemm_8rows_256, q4_k_gemv_256};
use crate::kernels::instruction_set::{InstructionSet, IsaName};
use crate::kernels::lanes::LANES;
use crate::kernels::operands::q4_k_blocks::{BlockRows, FourBlocks, PanelResults};
use crate::kernels::scalar::Scalar;
use crate::quant::{BlockQ8, BlockQ8K, Iq2Xxs, PanelBlock, Q2K, SmallBlock, SuperBlock};

/// Proof that the CPU has AVX2 and F16C.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Avx2(());

impl Avx2 {
    pub(in crate::kernels) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

impl InstructionSet for Avx2 {
    type Base = Scalar;

    const ISA: IsaName = IsaName::Avx2;

    fn base(self) -> Scalar {
        Scalar
    }

    fn q4_k_gemm_8rows(
        self,
        w: BlockRows<'_, 8>,
        xs: &[&BlockQ8K],
        ahead: *const u8,
        out: &mut [[f32; 8]],
    ) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { q4_k_gemm_8rows_256::q4_k_gemm_8rows::<Madd>(w, xs, ahead, out) }
    }

    fn q4_k_panel_gemm<const FRESH: bool>(
        self,
        panel: &[PanelBlock],
        xs: &[&BlockQ8K],
        ahead: impl Fn(usize) -> *const u8,
        out: &mut PanelResults<'_>,
    ) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { q4_k_panel_gemm_256::q4_k_panel_gemm::<Madd, FRESH>(panel, xs, ahead, out) }
    }

    fn q4_k_gemv_4blocks(
        self,
        row: &[u8],
        x: &[&BlockQ8K],
        fours: &[FourBlocks],
        ahead: *const u8,
        terms: &mut [f32],
    ) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { q4_k_gemv_256::q4_k_gemv_4blocks(row, x, fours, ahead, terms) }
    }

    fn q2_k(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { q2_k_iq2_xxs::row::<Q2K>(row, xs, out) }
    }

    fn iq2_xxs(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { q2_k_iq2_xxs::row::<Iq2Xxs>(row, xs, out) }
    }

    fn prefetch(self, start: *const u8, bytes: usize) {
        prefetch(start, bytes);
    }

    fn read_through(self, bytes: &[u8]) -> u64 {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { peak::read_avx2(bytes) }
    }

    fn multiply_bytes(self, rounds: u32) -> Option<u64> {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        Some(unsafe { peak::multiply_avx2(rounds) })
    }

    fn f16_gemv(self, row: &[u8], x: &[f32], ahead: *const u8) -> f32 {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { f16_gemv::f16_gemv_256(row, x, ahead) }
    }

    fn vectorised<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { vectorised(work) }
    }

    fn widen_f16(self, row: &[u8], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { widen_f16(row, out) }
    }

    fn dots_f32(self, a: &[f32], bs: &[&[f32]], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { dots_f32(a, bs, out) }
    }

    fn add_scaled(self, factors: &[f32], xs: &[&[f32]], y: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { add_scaled(factors, xs, y) }
    }

    fn widen_bf16(self, row: &[u8], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { wide_bf16(row, out) }
    }

    fn q4_k(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { q4_k(self, row, xs, out) }
    }

    fn super_blocks<F: SuperBlock>(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { super_blocks::<F>(self, row, xs, out) }
    }

    fn small_blocks<F: SmallBlock>(self, row: &[u8], xs: &[&[BlockQ8]], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { small_blocks::<F>(self, row, xs, out) }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    work()
}

row_loops!("avx2,f16c", Avx2);

// SAFETY: only `detect` makes a value, on a CPU with these instructions.
unsafe impl RowVectors for Avx2 {
    type Sum = __m256i;
    type Nibbles = Nibbles;
    type SmallWeights = [[i8; 32]; LANES];

    #[inline(always)]
    fn zero(self) -> __m256i {
        // SAFETY: `self` exists, so `detect` found AVX2.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    fn totals(self, sums: &[__m256i; 4]) -> __m128i {
        // SAFETY: `self` exists, so `detect` found AVX2.
        unsafe { sum_four_256(sums) }
    }

    #[inline(always)]
    fn unpack_q4_k(self, bytes: &[u8; 144], scales: u64) -> Nibbles {
        // SAFETY: `self` exists, so `detect` found AVX2.
        unsafe { unpack_q4_k(bytes, scales) }
    }

    #[inline(always)]
    fn dot_q4_k(self, w: &Nibbles, x: &BlockQ8K) -> __m256i {
        // SAFETY: `self` exists, so `detect` found AVX2.
        unsafe { dot_q4_k(w, x) }
    }

    #[inline(always)]
    fn dot_scaled(self, w: &[i16; 256], x: &BlockQ8K) -> __m256i {
        // SAFETY: `self` exists, so `detect` found AVX2.
        unsafe { dot_scaled(w, x) }
    }

    #[inline(always)]
    fn small_weights(self, q: [[i8; 32]; LANES]) -> [[i8; 32]; LANES] {
        q
    }

    #[inline(always)]
    fn add_small(
        self,
        lanes: &mut [f32; LANES],
        scales: &[f32; LANES],
        w: &[[i8; 32]; LANES],
        x: &[BlockQ8; LANES],
    ) {
        // SAFETY: `self` exists, so `detect` found AVX2.
        unsafe { add_small(lanes, scales, w, x) }
    }
}

/// The weights and scales of a Q4_K block in registers.
pub(super) struct Nibbles {
    /// Sub-block by sub-block.
    q: [__m256i; 8],
    /// The scale of each sub-block in every 16-bit lane.
    scales: [__m256i; 8],
}

#[inline]
#[target_feature(enable = "avx2")]
fn unpack_q4_k(bytes: &[u8; 144], scales: u64) -> Nibbles {
    let low = _mm256_set1_epi8(15);
    let zero = _mm256_setzero_si256();
    let mut block = Nibbles {
        q: [zero; 8],
        scales: [zero; 8],
    };
    for p in 0..4 {
        let packed = load_256(part::<_, 32>(&bytes[16..], p));
        block.q[2 * p] = _mm256_and_si256(packed, low);
        block.q[2 * p + 1] = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), low);
    }
    for (vector, scale) in block.scales.iter_mut().zip(scales.to_le_bytes()) {
        *vector = _mm256_set1_epi16(i16::from(scale));
    }
    block
}

/// The integer sum in eight parts. In 16 bits a pair of products is at most 2 * 15 * 128.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn dot_q4_k(w: &Nibbles, x: &BlockQ8K) -> __m256i {
    let mut sum = _mm256_setzero_si256();
    for j in 0..8 {
        let pairs = _mm256_maddubs_epi16(w.q[j], load_256(part(&x.q, j)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, w.scales[j]));
    }
    sum
}

/// The integer sum in eight parts.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_scaled(w: &[i16; 256], x: &BlockQ8K) -> __m256i {
    let mut sum = _mm256_setzero_si256();
    for k in 0..16 {
        let q = _mm256_cvtepi8_epi16(load_128(part(&x.q, k)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(load_i16(part(w, k)), q));
    }
    sum
}

/// Adds 16 blocks to their lanes.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_small(
    lanes: &mut [f32; LANES],
    scales: &[f32; LANES],
    w: &[[i8; 32]; LANES],
    x: &[BlockQ8; LANES],
) {
    let mut sums = [_mm_setzero_si128(); 4];
    for (four, sum) in sums.iter_mut().enumerate() {
        let mut parts = [_mm256_setzero_si256(); 4];
        for i in 0..4 {
            parts[i] = dot_small(&w[4 * four + i], &x[4 * four + i].q);
        }
        *sum = sum_four_256(&parts);
    }
    for (four, sum) in sums.into_iter().enumerate() {
        let mut integers = [0.0; 4];
        store_f32x4(_mm_cvtepi32_ps(sum), &mut integers);
        for (i, integer) in integers.into_iter().enumerate() {
            let at = 4 * four + i;
            lanes[at] += (scales[at] * x[at].d) * integer;
        }
    }
}

/// The products of 32 signed bytes in eight sums; exact for -128 on both sides.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn dot_small(w: &[i8; 32], x: &[i8; 32]) -> __m256i {
    let mut halves = [_mm256_setzero_si256(); 2];
    for (i, half) in halves.iter_mut().enumerate() {
        let w = _mm256_cvtepi8_epi16(load_128(part(w, i)));
        let x = _mm256_cvtepi8_epi16(load_128(part(x, i)));
        *half = _mm256_madd_epi16(w, x);
    }
    _mm256_add_epi32(halves[0], halves[1])
}
