//! AVX2 (with F16C, which every such CPU has).

use std::arch::x86_64::*;

use super::block_terms::{Factors, spread_mins, sum_mins, two_halves};
use super::byte_products::Madd;
use super::q4_k_panel_gemm_256;
use super::vectors::{
    load_128, load_256, load_halves, load_i16, part, prefetch, store_f32x4, sum_four_256,
};
use super::{f16_gemv, peak, q2_k_iq2_xxs, q4_k_gemm_8rows_256, q4_k_gemv_256};
use crate::kernels::instruction_set::{InstructionSet, IsaName};
use crate::kernels::lanes::{self, LANES};
use crate::kernels::operands::q4_k_blocks::{BlockRows, FourBlocks, PanelResults};
use crate::kernels::scalar::Scalar;
use crate::quant::{
    BlockQ8, BlockQ8K, IntBlock, Iq2Xxs, PanelBlock, Q2K, Q4K, SmallBlock, SuperBlock,
};
use crate::quant::{q4_k_scales, widen_bf16, widen_f16};

/// Activations whose lanes are kept while they are multiplied with a part of a row.
const TOKENS: usize = 64;

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

    fn dots_f32(self, a: &[f32], bs: &[&[f32]], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { dots_f32(a, bs, out) }
    }

    fn add_scaled(self, factors: &[f32], xs: &[&[f32]], y: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { add_scaled(factors, xs, y) }
    }

    fn widen_f16(self, row: &[u8], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { wide_f16(row, out) }
    }

    fn widen_bf16(self, row: &[u8], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { wide_bf16(row, out) }
    }

    fn q4_k(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { q4_k(row, xs, out) }
    }

    fn super_blocks<F: SuperBlock>(self, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe { super_blocks::<F>(row, xs, out) }
    }

    fn small_blocks<F: SmallBlock>(self, row: &[u8], xs: &[&[BlockQ8]], out: &mut [f32]) {
        // SAFETY: `self` exists, so `detect` found AVX2 and F16C.
        unsafe {
            match xs {
                [_] => small_blocks::<F, 1>(row, xs, out),
                _ => {
                    for (xs, out) in xs.chunks(TOKENS).zip(out.chunks_mut(TOKENS)) {
                        small_blocks::<F, TOKENS>(row, xs, out);
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[target_feature(enable = "avx2,f16c")]
fn dots_f32(a: &[f32], bs: &[&[f32]], out: &mut [f32]) {
    lanes::dots_many(a, bs, out);
}

#[target_feature(enable = "avx2,f16c")]
fn add_scaled(factors: &[f32], xs: &[&[f32]], y: &mut [f32]) {
    lanes::add_scaled(factors, xs, y);
}

#[target_feature(enable = "avx2,f16c")]
fn wide_bf16(row: &[u8], out: &mut [f32]) {
    widen_bf16(row, out);
}

#[target_feature(enable = "avx2,f16c")]
fn wide_f16(row: &[u8], out: &mut [f32]) {
    let (eights, rest) = row.as_chunks::<16>();
    let (wide, wide_rest) = out.as_chunks_mut::<8>();
    for (bits, to) in eights.iter().zip(wide) {
        let values = _mm256_cvtph_ps(load_halves(bits));
        // SAFETY: `to` is valid for eight floats and the store needs no alignment.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), values) };
    }
    widen_f16(rest, wide_rest);
}

/// A Q4_K block in registers.
struct Nibbles {
    /// Sub-block by sub-block.
    q: [__m256i; 8],
    /// The scale of each sub-block in every 16-bit lane.
    scales: [__m256i; 8],
    /// One min a 16-bit lane.
    mins: __m256i,
    d: f32,
    dmin: f32,
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn unpack_q4_k(bytes: &[u8; 144]) -> Nibbles {
    let (scales, mins) = q4_k_scales(bytes);
    let low = _mm256_set1_epi8(15);
    let zero = _mm256_setzero_si256();
    let mut block = Nibbles {
        q: [zero; 8],
        scales: [zero; 8],
        mins: spread_mins(mins),
        d: 0.0,
        dmin: 0.0,
    };
    (block.d, block.dmin) = two_halves(bytes);
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

#[target_feature(enable = "avx2,f16c")]
fn q4_k(row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
    let blocks = Q4K::blocks(row);
    if let ([x], [out]) = (xs, &mut *out) {
        let (fours, rest) = blocks.as_chunks::<4>();
        let (x_fours, x_rest) = x.as_chunks::<4>();
        *out = 0.0;
        for (w, x) in fours.iter().zip(x_fours) {
            q4_k_along::<4>(w, x.each_ref())
                .iter()
                .for_each(|term| *out += term);
        }
        for (w, x) in rest.iter().zip(x_rest) {
            *out += q4_k_along::<1>(&[*w], [x])[0];
        }
        return;
    }
    out.fill(0.0);
    for (b, bytes) in blocks.iter().enumerate() {
        let w = unpack_q4_k(bytes);
        for (xs, out) in xs.chunks(4).zip(out.chunks_mut(4)) {
            match xs.len() {
                4 => q4_k_across::<4>(&w, xs, b, out),
                3 => q4_k_across::<3>(&w, xs, b, out),
                2 => q4_k_across::<2>(&w, xs, b, out),
                _ => q4_k_across::<1>(&w, xs, b, out),
            }
        }
    }
}

/// The terms of `N` blocks in a row, one activation; the others are of no meaning.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn q4_k_along<const N: usize>(w: &[[u8; 144]; N], x: [&BlockQ8K; N]) -> [f32; 4] {
    let mut sums = [_mm256_setzero_si256(); 4];
    let mut factors = Factors::zero();
    for i in 0..N {
        let w = unpack_q4_k(&w[i]);
        sums[i] = dot_q4_k(&w, x[i]);
        factors.set(i, x[i].d, w.d, w.dmin, sum_mins(w.mins, x[i]));
    }
    factors.terms::<Q4K>(sum_four_256(&sums))
}

/// One block, `N` activations.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn q4_k_across<const N: usize>(w: &Nibbles, xs: &[&[BlockQ8K]], b: usize, out: &mut [f32]) {
    let mut sums = [_mm256_setzero_si256(); 4];
    let mut factors = Factors::zero();
    for i in 0..N {
        let x = &xs[i][b];
        sums[i] = dot_q4_k(w, x);
        factors.set(i, x.d, w.d, w.dmin, sum_mins(w.mins, x));
    }
    let terms = factors.terms::<Q4K>(sum_four_256(&sums));
    for (out, term) in out[..N].iter_mut().zip(terms) {
        *out += term;
    }
}

#[target_feature(enable = "avx2,f16c")]
fn super_blocks<F: SuperBlock>(row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
    out.fill(0.0);
    let mut w = IntBlock::ZERO;
    let mut scaled = [0; 256];
    for (b, bytes) in F::blocks(row).iter().enumerate() {
        F::unpack(bytes, &mut w);
        w.scale_into(&mut scaled);
        for (xs, out) in xs.chunks(4).zip(out.chunks_mut(4)) {
            match xs.len() {
                4 => super_across::<F, 4>(&w, &scaled, xs, b, out),
                3 => super_across::<F, 3>(&w, &scaled, xs, b, out),
                2 => super_across::<F, 2>(&w, &scaled, xs, b, out),
                _ => super_across::<F, 1>(&w, &scaled, xs, b, out),
            }
        }
    }
}

/// One block, `N` activations; `scaled` are the block's integers times their scales.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn super_across<F: SuperBlock, const N: usize>(
    w: &IntBlock,
    scaled: &[i16; 256],
    xs: &[&[BlockQ8K]],
    b: usize,
    out: &mut [f32],
) {
    let mut sums = [_mm256_setzero_si256(); 4];
    let mut factors = Factors::zero();
    for i in 0..N {
        let x = &xs[i][b];
        for k in 0..16 {
            let q = _mm256_cvtepi8_epi16(load_128(part(&x.q, k)));
            let products = _mm256_madd_epi16(load_i16(part(scaled, k)), q);
            sums[i] = _mm256_add_epi32(sums[i], products);
        }
        let mins = match F::HAS_MINS {
            true => sum_mins(load_i16(&w.mins), x),
            false => _mm256_setzero_si256(),
        };
        factors.set(i, x.d, w.d, w.dmin, mins);
    }
    let terms = factors.terms::<F>(sum_four_256(&sums));
    for (out, term) in out[..N].iter_mut().zip(terms) {
        *out += term;
    }
}

/// Up to `T` activations and a row of small blocks, 16 blocks at a time.
#[target_feature(enable = "avx2,f16c")]
fn small_blocks<F: SmallBlock, const T: usize>(row: &[u8], xs: &[&[BlockQ8]], out: &mut [f32]) {
    let (parts, rest) = F::blocks(row).as_chunks::<LANES>();
    let mut lanes = [[0.0; LANES]; T];
    for (p, bytes) in parts.iter().enumerate() {
        let scales = small_scales::<F>(bytes);
        let mut q = [[0; 32]; LANES];
        for (q, bytes) in q.iter_mut().zip(bytes) {
            *q = F::integers(bytes);
        }
        for (lanes, x) in lanes.iter_mut().zip(xs) {
            add_small(lanes, &scales, &q, part(x, p));
        }
    }
    for (i, bytes) in rest.iter().enumerate() {
        let (scale, q) = (F::scale(bytes), F::integers(bytes));
        for (lanes, x) in lanes.iter_mut().zip(xs) {
            lanes::add_small_block(&mut lanes[i], scale, &q, &x[LANES * parts.len() + i]);
        }
    }
    for (lanes, out) in lanes.iter().zip(out) {
        *out = lanes::tree(*lanes);
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn small_scales<F: SmallBlock>(blocks: &[F::Bytes; LANES]) -> [f32; LANES] {
    let mut scales = [0.0; LANES];
    let mut halves = [0; 2 * LANES];
    for (i, bytes) in blocks.iter().enumerate() {
        match F::half_scale(bytes) {
            Some(bits) => halves[2 * i..2 * i + 2].copy_from_slice(&bits.to_le_bytes()),
            None => scales[i] = F::scale(bytes),
        }
    }
    if blocks
        .first()
        .is_some_and(|bytes| F::half_scale(bytes).is_some())
    {
        wide_f16(&halves, &mut scales);
    }
    scales
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
