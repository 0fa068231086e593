//! Rows of Q4_K, of any other format of 256 weights a block, and of formats of 32: what AVX2 and
//! AVX-512 share, generic over the width of their vectors.
//!
//! The functions are compiled for no instruction set of their own: they are inlined into those of
//! the sets, which are.

use std::arch::x86_64::*;

use super::block_terms::{Factors, spread_mins, sum_mins, two_halves};
use super::vectors::{load_i16, part, widen_f16};
use crate::kernels::lanes::{self, LANES};
use crate::quant::{BlockQ8, BlockQ8K, IntBlock, Q4K, SmallBlock, SuperBlock, q4_k_scales};

/// Activations whose lanes are kept while they are multiplied with a part of a row.
const TOKENS: usize = 64;

/// The loops over rows that are plain Rust or generic over [`RowVectors`], compiled for the features
/// of the set `$set`. By way of its `vectorised` they would not always be inlined, and be as slow as
/// scalar ones.
macro_rules! row_loops {
    ($features:literal, $set:ty) => {
        #[target_feature(enable = $features)]
        fn dots_f32(a: &[f32], bs: &[&[f32]], out: &mut [f32]) {
            $crate::kernels::lanes::dots_many(a, bs, out);
        }

        #[target_feature(enable = $features)]
        fn add_scaled(factors: &[f32], xs: &[&[f32]], y: &mut [f32]) {
            $crate::kernels::lanes::add_scaled(factors, xs, y);
        }

        #[target_feature(enable = $features)]
        fn wide_bf16(row: &[u8], out: &mut [f32]) {
            $crate::quant::widen_bf16(row, out);
        }

        #[target_feature(enable = $features)]
        fn q4_k(k: $set, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
            $crate::kernels::x86_64::row_vectors::q4_k(k, row, xs, out);
        }

        #[target_feature(enable = $features)]
        fn super_blocks<F: SuperBlock>(k: $set, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
            $crate::kernels::x86_64::row_vectors::super_blocks::<_, F>(k, row, xs, out);
        }

        #[target_feature(enable = $features)]
        fn small_blocks<F: SmallBlock>(k: $set, row: &[u8], xs: &[&[BlockQ8]], out: &mut [f32]) {
            $crate::kernels::x86_64::row_vectors::small_blocks::<_, F>(k, row, xs, out);
        }
    };
}
pub(super) use row_loops;

/// What depends on the width of vectors.
///
/// # Safety
/// A value must prove that the CPU has AVX2 and F16C, and whatever else the methods need.
pub(super) unsafe trait RowVectors: Copy {
    /// The integer sum of a product, in several parts.
    type Sum: Copy;

    /// The weights and scales of a Q4_K block.
    type Nibbles;

    /// 16 blocks of 32 weights.
    type SmallWeights;

    fn zero(self) -> Self::Sum;

    /// The sums of four products, in their order.
    fn totals(self, sums: &[Self::Sum; 4]) -> __m128i;

    /// `scales` has one of each sub-block a byte.
    fn unpack_q4_k(self, bytes: &[u8; 144], scales: u64) -> Self::Nibbles;

    fn dot_q4_k(self, w: &Self::Nibbles, x: &BlockQ8K) -> Self::Sum;

    /// The product with weights that are multiplied with their scales already.
    fn dot_scaled(self, w: &[i16; 256], x: &BlockQ8K) -> Self::Sum;

    fn small_weights(self, q: [[i8; 32]; LANES]) -> Self::SmallWeights;

    /// Adds 16 blocks to their lanes.
    fn add_small(
        self,
        lanes: &mut [f32; LANES],
        scales: &[f32; LANES],
        w: &Self::SmallWeights,
        x: &[BlockQ8; LANES],
    );
}

/// A Q4_K block in registers.
struct Q4KBlock<N> {
    nibbles: N,
    /// One min a 16-bit lane.
    mins: __m256i,
    d: f32,
    dmin: f32,
}

impl<N> Q4KBlock<N> {
    #[inline(always)]
    fn unpack<V: RowVectors<Nibbles = N>>(v: V, bytes: &[u8; 144]) -> Self {
        let (scales, mins) = q4_k_scales(bytes);
        // SAFETY: `v` exists, so the CPU has F16C.
        let (d, dmin) = unsafe { two_halves(bytes) };
        Self {
            nibbles: v.unpack_q4_k(bytes, scales),
            // SAFETY: `v` exists, so the CPU has AVX2.
            mins: unsafe { spread_mins(mins) },
            d,
            dmin,
        }
    }
}

/// Up to four products of a block with an activation block.
struct RowProducts<V: RowVectors> {
    v: V,
    sums: [V::Sum; 4],
    factors: Factors,
}

impl<V: RowVectors> RowProducts<V> {
    #[inline(always)]
    fn new(v: V) -> Self {
        Self {
            v,
            sums: [v.zero(); 4],
            // SAFETY: `v` exists, so the CPU has AVX2.
            factors: unsafe { Factors::zero() },
        }
    }

    #[inline(always)]
    fn set_q4_k(&mut self, i: usize, w: &Q4KBlock<V::Nibbles>, x: &BlockQ8K) {
        self.sums[i] = self.v.dot_q4_k(&w.nibbles, x);
        // SAFETY: `v` exists, so the CPU has AVX2.
        unsafe { self.factors.set(i, x.d, w.d, w.dmin, sum_mins(w.mins, x)) };
    }

    #[inline(always)]
    fn set<F: SuperBlock>(&mut self, i: usize, w: &IntBlock, scaled: &[i16; 256], x: &BlockQ8K) {
        self.sums[i] = self.v.dot_scaled(scaled, x);
        // SAFETY: `v` exists, so the CPU has AVX2.
        let mins = unsafe {
            match F::HAS_MINS {
                true => sum_mins(load_i16(&w.mins), x),
                false => _mm256_setzero_si256(),
            }
        };
        // SAFETY: `v` exists, so the CPU has AVX2.
        unsafe { self.factors.set(i, x.d, w.d, w.dmin, mins) };
    }

    /// What each of the products adds to its row.
    #[inline(always)]
    fn terms<F: SuperBlock>(&self) -> [f32; 4] {
        // SAFETY: `v` exists, so the CPU has AVX2.
        unsafe { self.factors.terms::<F>(self.v.totals(&self.sums)) }
    }
}

/// `out[t] = row · xs[t]` for Q4_K.
#[inline(always)]
pub(super) fn q4_k<V: RowVectors>(v: V, row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
    let blocks = Q4K::blocks(row);
    if let ([x], [out]) = (xs, &mut *out) {
        let (fours, rest) = blocks.as_chunks::<4>();
        let (x_fours, x_rest) = x.as_chunks::<4>();
        *out = 0.0;
        for (w, x) in fours.iter().zip(x_fours) {
            add_q4_k_blocks::<V, 4>(v, w, x, out);
        }
        for (w, x) in rest.iter().zip(x_rest) {
            add_q4_k_blocks::<V, 1>(v, &[*w], &[*x], out);
        }
        return;
    }
    out.fill(0.0);
    for (b, bytes) in blocks.iter().enumerate() {
        let w = Q4KBlock::unpack(v, bytes);
        for (xs, out) in xs.chunks(4).zip(out.chunks_mut(4)) {
            match xs.len() {
                4 => add_q4_k_block::<V, 4>(v, &w, xs, b, out),
                3 => add_q4_k_block::<V, 3>(v, &w, xs, b, out),
                2 => add_q4_k_block::<V, 2>(v, &w, xs, b, out),
                _ => add_q4_k_block::<V, 1>(v, &w, xs, b, out),
            }
        }
    }
}

/// `N` blocks in a row, one activation.
#[inline(always)]
fn add_q4_k_blocks<V: RowVectors, const N: usize>(
    v: V,
    w: &[[u8; 144]; N],
    x: &[BlockQ8K; N],
    out: &mut f32,
) {
    let mut products = RowProducts::new(v);
    for i in 0..N {
        products.set_q4_k(i, &Q4KBlock::unpack(v, &w[i]), &x[i]);
    }
    for term in &products.terms::<Q4K>()[..N] {
        *out += term;
    }
}

/// One block, `N` activations.
#[inline(always)]
fn add_q4_k_block<V: RowVectors, const N: usize>(
    v: V,
    w: &Q4KBlock<V::Nibbles>,
    xs: &[&[BlockQ8K]],
    b: usize,
    out: &mut [f32],
) {
    let Some(xs) = xs.first_chunk::<N>() else {
        return;
    };
    let mut products = RowProducts::new(v);
    for (i, x) in xs.iter().enumerate() {
        products.set_q4_k(i, w, &x[b]);
    }
    for (out, term) in out[..N].iter_mut().zip(products.terms::<Q4K>()) {
        *out += term;
    }
}

/// `out[t] = row · xs[t]` for any format of 256 weights a block.
#[inline(always)]
pub(super) fn super_blocks<V: RowVectors, F: SuperBlock>(
    v: V,
    row: &[u8],
    xs: &[&[BlockQ8K]],
    out: &mut [f32],
) {
    out.fill(0.0);
    let mut w = IntBlock::ZERO;
    let mut scaled = [0; 256];
    for (b, bytes) in F::blocks(row).iter().enumerate() {
        F::unpack(bytes, &mut w);
        w.scale_into(&mut scaled);
        for (xs, out) in xs.chunks(4).zip(out.chunks_mut(4)) {
            match xs.len() {
                4 => add_super_block::<V, F, 4>(v, &w, &scaled, xs, b, out),
                3 => add_super_block::<V, F, 3>(v, &w, &scaled, xs, b, out),
                2 => add_super_block::<V, F, 2>(v, &w, &scaled, xs, b, out),
                _ => add_super_block::<V, F, 1>(v, &w, &scaled, xs, b, out),
            }
        }
    }
}

/// One block, `N` activations; `scaled` are the block's integers times their scales.
#[inline(always)]
fn add_super_block<V: RowVectors, F: SuperBlock, const N: usize>(
    v: V,
    w: &IntBlock,
    scaled: &[i16; 256],
    xs: &[&[BlockQ8K]],
    b: usize,
    out: &mut [f32],
) {
    let Some(xs) = xs.first_chunk::<N>() else {
        return;
    };
    let mut products = RowProducts::new(v);
    for (i, x) in xs.iter().enumerate() {
        products.set::<F>(i, w, scaled, &x[b]);
    }
    for (out, term) in out[..N].iter_mut().zip(products.terms::<F>()) {
        *out += term;
    }
}

/// `out[t] = row · xs[t]` for a format of 32 weights a block.
#[inline(always)]
pub(super) fn small_blocks<V: RowVectors, F: SmallBlock>(
    v: V,
    row: &[u8],
    xs: &[&[BlockQ8]],
    out: &mut [f32],
) {
    match xs {
        [_] => some_small_blocks::<V, F, 1>(v, row, xs, out),
        _ => {
            for (xs, out) in xs.chunks(TOKENS).zip(out.chunks_mut(TOKENS)) {
                some_small_blocks::<V, F, TOKENS>(v, row, xs, out);
            }
        }
    }
}

/// Up to `T` activations, 16 blocks at a time.
#[inline(always)]
fn some_small_blocks<V: RowVectors, F: SmallBlock, const T: usize>(
    v: V,
    row: &[u8],
    xs: &[&[BlockQ8]],
    out: &mut [f32],
) {
    let (parts, rest) = F::blocks(row).as_chunks::<LANES>();
    let mut lanes = [[0.0; LANES]; T];
    for (p, bytes) in parts.iter().enumerate() {
        let scales = small_scales::<V, F>(v, bytes);
        let mut q = [[0; 32]; LANES];
        for (q, bytes) in q.iter_mut().zip(bytes) {
            *q = F::integers(bytes);
        }
        let w = v.small_weights(q);
        for (lanes, x) in lanes.iter_mut().zip(xs) {
            v.add_small(lanes, &scales, &w, part(x, p));
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

#[inline(always)]
fn small_scales<V: RowVectors, F: SmallBlock>(_: V, blocks: &[F::Bytes; LANES]) -> [f32; LANES] {
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
        // SAFETY: a `V` exists, so the CPU has AVX2 and F16C.
        unsafe { widen_f16(&halves, &mut scales) };
    }
    scales
}
