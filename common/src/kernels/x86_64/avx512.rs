//! AVX-512 (F, BW, VL, DQ) without VNNI: wide vectors for sixteen rows of Q4_K, where the
//! products are; the rest is AVX2's.

use std::arch::x86_64::*;

use super::avx2::Avx2;
use super::q4_k_gemm_16rows::{Scales, nibbles, twice, two, words};
use super::vectors::{part, prefetch_lines};
use super::{f16_gemv, f32_gemm, peak, q4_k_panel_gemm_512};
use crate::kernels::instruction_set::{InstructionSet, IsaName};
use crate::kernels::operands::q4_k_blocks::{BlockRows, PanelResults, Q4KRowSums};
use crate::quant::{BlockQ8K, PanelBlock};

/// Activations whose integer sums are kept while they are multiplied with a part of the block.
const TOKENS: usize = 64;

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
        unsafe { q4_k_gemm_16rows(w, xs, ahead, out) }
    }

    fn q4_k_panel_gemm<const FRESH: bool>(
        self,
        panel: &[PanelBlock],
        xs: &[&BlockQ8K],
        ahead: impl Fn(usize) -> *const u8,
        out: &mut PanelResults<'_>,
    ) {
        // SAFETY: `self` exists, so `detect` found every enabled feature.
        unsafe { q4_k_panel_gemm_512::madd::q4_k_panel_gemm::<FRESH>(panel, xs, ahead, out) }
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

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
fn q4_k_gemm_16rows(
    w: BlockRows<'_, 16>,
    xs: &[&BlockQ8K],
    ahead: *const u8,
    out: &mut [Q4KRowSums],
) {
    for (xs, out) in xs.chunks(TOKENS).zip(out.chunks_mut(TOKENS)) {
        // Clearing the sums of absent tokens would cost more than a few tokens' products.
        match xs.len() {
            0 | 1 => add_block::<1>(w, xs, ahead, out),
            2..=4 => add_block::<4>(w, xs, ahead, out),
            5..=16 => add_block::<16>(w, xs, ahead, out),
            _ => add_block::<TOKENS>(w, xs, ahead, out),
        }
    }
}

/// Up to `T` activations.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
fn add_block<const T: usize>(
    w: BlockRows<'_, 16>,
    xs: &[&BlockQ8K],
    ahead: *const u8,
    out: &mut [Q4KRowSums],
) {
    let rows = Scales::new(words(&w, 0));
    prefetch_lines::<4>(ahead, 0);
    let mut sums = [_mm512_setzero_si512(); T];
    for p in 0..4 {
        let q = nibbles(&w, p);
        prefetch_lines::<8>(ahead, 4 + 8 * p);
        let scales = [twice(rows.scale(2 * p)), twice(rows.scale(2 * p + 1))];
        for (sum, x) in sums.iter_mut().zip(xs) {
            *sum = add_pair(*sum, &q, scales, part(&x.q, p));
        }
    }
    let mins = rows.all_mins();
    for ((sum, x), out) in sums.iter().zip(xs).zip(out) {
        rows.add_sums(*sum, sum_mins(&mins, x), x, out);
    }
}

/// Adds two sub-blocks' scaled integer sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_pair(sum: __m512i, q: &[__m512i; 16], scales: [__m512i; 2], x: &[i8; 64]) -> __m512i {
    let halves = q.as_chunks::<8>().0.iter().zip(x.as_chunks::<32>().0);
    let mut all = sum;
    for ((q, x), scale) in halves.zip(scales) {
        let mut pairs = _mm512_setzero_si512();
        for (q, x) in q.iter().zip(x.as_chunks::<4>().0) {
            let four = _mm512_set1_epi32(i32::from_le_bytes(x.map(|v| v as u8)));
            // Eight pairs are at most 8 * 2 * 15 * 128, which fits in 16 bits.
            pairs = _mm512_add_epi16(pairs, _mm512_maddubs_epi16(*q, four));
        }
        all = _mm512_add_epi32(all, _mm512_madd_epi16(pairs, scale));
    }
    all
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn sum_mins(mins: &[__m512i; 8], x: &BlockQ8K) -> __m512i {
    let mut sum = _mm512_setzero_si512();
    for (k, min) in mins.iter().enumerate() {
        sum = _mm512_add_epi32(sum, _mm512_madd_epi16(*min, two(&x.bsums, k)));
    }
    sum
}
