//! AVX-512 (F, BW, VL, DQ) with VNNI.

use std::arch::x86_64::*;

use super::avx512::Avx512;
use super::q4_k_gemm_16rows_512::vnni;
use super::row_vectors::{RowVectors, row_loops};
use super::vectors::{
    join, load_256, load_512, load_f32x16, load_i16x32, part, prefetch, store_f32x16, sum_four_512,
    sum_four_by_lane,
};
use super::{f32_gemm, peak, q2_k_iq2_xxs, q4_k_gemm_8rows_512, q4_k_gemv_512};
use super::{q8_0_gemm_32rows, q8_0_gemv};
use crate::kernels::instruction_set::{InstructionSet, IsaName};
use crate::kernels::lanes::LANES;
use crate::kernels::operands::q4_k_blocks::{BlockRows, FourBlocks, PanelResults, Q4KRowSums};
use crate::kernels::operands::q8_0_blocks::{LaneSums, Q8_0_ROWS, SixteenBlocks};
use crate::kernels::operands::q8_0_blocks::{TokenGroup, UnpackedBlock, pair_start};
use crate::quant::{BlockQ8, BlockQ8K, Iq2Xxs, PanelBlock, Q2K, SmallBlock, SuperBlock};

/// Proof that the CPU has what [`Avx512`] has, and AVX-512 VNNI.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Avx512Vnni(Avx512);

impl Avx512Vnni {
    pub(in crate::kernels) fn detect() -> Option<Self> {
        let avx512 = Avx512::detect()?;
        is_x86_feature_detected!("avx512vnni").then_some(Self(avx512))
    }
}

impl InstructionSet for Avx512Vnni {
    type Base = Avx512;

    const ISA: IsaName = IsaName::Avx512Vnni;

    fn base(self) -> Avx512 {
        self.0
    }

    fn vectorised<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { vectorised(work) }
    }

    fn q8_0_gemv(self, row: &[u8], x: &[SixteenBlocks], ahead: *const u8) -> f32 {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { q8_0_gemv::q8_0_gemv(row, x, ahead) }
    }

    fn q8_0_unpack(
        self,
        rows: &[&[u8]; Q8_0_ROWS],
        ahead: *const u8,
        weights: &mut [UnpackedBlock],
    ) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { q8_0_gemm_32rows::unpack(rows, ahead, weights) }
    }

    fn q8_0_gemm_32rows(self, weights: &[UnpackedBlock], x: TokenGroup<'_>, sums: &mut LaneSums) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { q8_0_gemm_32rows::multiply(weights, x, sums) }
    }

    fn dots_grid(self, a: &[&[f32]], b: &[&[f32]], out: &mut [f32], stride: usize) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { f32_gemm::dots_grid(a, b, out, stride) }
    }

    fn add_scaled_grid(self, factors: &[f32], stride: usize, xs: &[&[f32]], ys: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { f32_gemm::add_scaled_grid(factors, stride, xs, ys) }
    }

    fn q4_k_gemm_16rows(
        self,
        w: BlockRows<'_, 16>,
        xs: &[&BlockQ8K],
        ahead: *const u8,
        out: &mut [Q4KRowSums],
    ) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { vnni::q4_k_gemm_16rows(w, xs, ahead, out) }
    }

    fn q4_k_panel_gemm<const FRESH: bool>(
        self,
        panel: &[PanelBlock],
        xs: &[&BlockQ8K],
        ahead: impl Fn(usize) -> *const u8,
        out: &mut PanelResults<'_>,
    ) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { vnni::q4_k_panel_gemm::<FRESH>(panel, xs, ahead, out) }
    }

    fn q4_k_gemm_8rows(
        self,
        w: BlockRows<'_, 8>,
        xs: &[&BlockQ8K],
        ahead: *const u8,
        out: &mut [[f32; 8]],
    ) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { q4_k_gemm_8rows_512::q4_k_gemm_8rows(w, xs, ahead, out) }
    }

    fn q4_k_gemv_4blocks(
        self,
        row: &[u8],
        x: &[&BlockQ8K],
        fours: &[FourBlocks],
        ahead: *const u8,
        terms: &mut [f32],
    ) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { q4_k_gemv_512::q4_k_gemv_4blocks(row, x, fours, ahead, terms) }
    }

    fn prefetch(self, start: *const u8, bytes: usize) {
        prefetch(start, bytes);
    }

    fn multiply_bytes(self, rounds: u32) -> Option<u64> {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        Some(unsafe { peak::multiply_avx512vnni(rounds) })
    }

    fn dots_f32(self, a: &[f32], bs: &[&[f32]], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { dots_f32(a, bs, out) }
    }

    fn add_scaled(self, factors: &[f32], xs: &[&[f32]], y: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { add_scaled(factors, xs, y) }
    }

    fn widen_bf16(self, row: &[u8], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { wide_bf16(row, out) }
    }

    fn q4_k(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { q4_k(self, row, xs, out) }
    }

    fn q2_k(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        match xs {
            // SAFETY: `self` exists, so `detect` found AVX2 and F16C too.
            [_] => unsafe { q2_k_iq2_xxs::row::<Q2K>(row, xs, out) },
            _ => self.super_blocks::<Q2K>(row, xs, out),
        }
    }

    fn iq2_xxs(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        match xs {
            // SAFETY: `self` exists, so `detect` found AVX2 and F16C too.
            [_] => unsafe { q2_k_iq2_xxs::row::<Iq2Xxs>(row, xs, out) },
            _ => self.super_blocks::<Iq2Xxs>(row, xs, out),
        }
    }

    fn super_blocks<F: SuperBlock>(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { super_blocks::<F>(self, row, xs, out) }
    }

    fn small_blocks<F: SmallBlock>(self, row: &[u8], xs: &[&[BlockQ8]], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { small_blocks::<F>(self, row, xs, out) }
    }
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    work()
}

row_loops!(
    "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni",
    Avx512Vnni
);

// SAFETY: only `detect` makes a value, on a CPU with these instructions.
unsafe impl RowVectors for Avx512Vnni {
    type Sum = __m512i;
    type Nibbles = Nibbles;
    type SmallWeights = Pairs;

    #[inline(always)]
    fn zero(self) -> __m512i {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn totals(self, sums: &[__m512i; 4]) -> __m128i {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { sum_four_512(sums) }
    }

    #[inline(always)]
    fn unpack_q4_k(self, bytes: &[u8; 144], scales: u64) -> Nibbles {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { unpack_q4_k(bytes, scales) }
    }

    #[inline(always)]
    fn dot_q4_k(self, w: &Nibbles, x: &BlockQ8K) -> __m512i {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { dot_q4_k(w, x) }
    }

    #[inline(always)]
    fn dot_scaled(self, w: &[i16; 256], x: &BlockQ8K) -> __m512i {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { dot_scaled(w, x) }
    }

    #[inline(always)]
    fn small_weights(self, q: [[i8; 32]; LANES]) -> Pairs {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { pair_blocks(&q) }
    }

    #[inline(always)]
    fn add_small(
        self,
        lanes: &mut [f32; LANES],
        scales: &[f32; LANES],
        w: &Pairs,
        x: &[BlockQ8; LANES],
    ) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { add_small(lanes, scales, w, x) }
    }
}

/// The weights and scales of a Q4_K block in registers.
pub(super) struct Nibbles {
    /// Two sub-blocks a vector, one after the other.
    q: [__m512i; 4],
    /// The scales of both in every 32-bit lane.
    scales: [__m512i; 4],
}

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn unpack_q4_k(bytes: &[u8; 144], scales: u64) -> Nibbles {
    let low = _mm512_set1_epi8(15);
    // The upper half of a vector takes the high nibbles of the same bytes.
    let shifts = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
    let first = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    let scales = _mm512_castsi256_si512(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(scales as i64)));
    let zero = _mm512_setzero_si512();
    let mut block = Nibbles {
        q: [zero; 4],
        scales: [zero; 4],
    };
    for p in 0..4 {
        let packed = _mm512_broadcast_i64x4(load_256(part::<_, 32>(&bytes[16..], p)));
        block.q[p] = _mm512_and_si512(_mm512_srlv_epi64(packed, shifts), low);
        let index = _mm512_add_epi32(first, _mm512_set1_epi32(2 * p as i32));
        block.scales[p] = _mm512_permutexvar_epi32(index, scales);
    }
    block
}

/// The integer sum in 16 parts.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn dot_q4_k(w: &Nibbles, x: &BlockQ8K) -> __m512i {
    let mut sum = _mm512_setzero_si512();
    for p in 0..4 {
        let quads = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w.q[p], load_512(part(&x.q, p)));
        // Four products are at most 4 * 15 * 128, so the lower 16 bits of a lane are its value,
        // and the zero above the scale hides the upper ones.
        sum = _mm512_dpwssd_epi32(sum, quads, w.scales[p]);
    }
    sum
}

/// The integer sum in 16 parts.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn dot_scaled(w: &[i16; 256], x: &BlockQ8K) -> __m512i {
    let mut sum = _mm512_setzero_si512();
    for k in 0..8 {
        let q = _mm512_cvtepi8_epi16(load_256(part(&x.q, k)));
        sum = _mm512_dpwssd_epi32(sum, load_i16x32(part(w, k)), q);
    }
    sum
}

/// 16 blocks of signed bytes, two a vector, and for each lane of four bytes -128 times their sum.
pub(super) struct Pairs {
    q: [__m512i; 8],
    offset: [__m512i; 8],
}

#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn pair_blocks(w: &[[i8; 32]; LANES]) -> Pairs {
    let zero = _mm512_setzero_si512();
    let ones = _mm512_set1_epi8(-128);
    let mut pairs = Pairs {
        q: [zero; 8],
        offset: [zero; 8],
    };
    for i in 0..8 {
        let at = pair_start(i);
        pairs.q[i] = join(load_256(&w[at]), load_256(&w[at + 4]));
        // -128 is 128 where the instruction takes it as unsigned.
        let sums = _mm512_dpbusd_epi32(zero, ones, pairs.q[i]);
        pairs.offset[i] = _mm512_sub_epi32(zero, sums);
    }
    pairs
}

/// Adds 16 blocks to their lanes.
///
/// The instruction multiplies unsigned by signed bytes, so it gets the activation plus 128; the
/// sum starts at what this adds, taken away. Exact for every byte: `255 * 128 * 32 < 2^31`.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn add_small(lanes: &mut [f32; LANES], scales: &[f32; LANES], w: &Pairs, x: &[BlockQ8; LANES]) {
    let mut parts = [[_mm512_setzero_si512(); 4]; 2];
    for i in 0..8 {
        let at = pair_start(i);
        let signed = join(load_256(&x[at].q), load_256(&x[at + 4].q));
        let raised = _mm512_xor_si512(signed, _mm512_set1_epi8(-128));
        parts[i / 4][i % 4] = _mm512_dpbusd_epi32(w.offset[i], raised, w.q[i]);
    }
    let low = sum_four_by_lane(&parts[0]);
    let high = sum_four_by_lane(&parts[1]);
    let even = _mm512_shuffle_i32x4::<0b10_00_10_00>(low, high);
    let odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(low, high);
    let sums = _mm512_cvtepi32_ps(_mm512_add_epi32(even, odd));
    let mut d8 = [0.0; LANES];
    for (d8, x) in d8.iter_mut().zip(x) {
        *d8 = x.d;
    }
    let scale = _mm512_mul_ps(load_f32x16(scales), load_f32x16(&d8));
    let sum = _mm512_add_ps(load_f32x16(lanes), _mm512_mul_ps(scale, sums));
    store_f32x16(sum, lanes);
}
