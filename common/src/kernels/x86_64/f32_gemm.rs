//! GEMM of f32: many rows times many others, several of both in registers: AVX-512.
//!
//! Per 16 columns every product is one multiplication and one addition into its own vector of
//! lanes, unfused, ascending: the lanes of the scalar definition.

use std::arch::x86_64::*;

use super::vectors::{load_f32x16, part, store_f32x16};
use crate::kernels::lanes::{self, LANES};

/// Columns of the left rows that stay in the first-level cache while the right rows pass.
const COLUMNS: usize = 512;

/// Right rows that are multiplied with a part of the left rows together: their lanes are kept
/// for that.
const RIGHT: usize = 32;

/// Left and right rows whose lanes are in registers.
const TALL: usize = 8;
const WIDE: usize = 3;

/// `out[i * stride + j] = a[i] · b[j]`.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn dots_grid(a: &[&[f32]], b: &[&[f32]], out: &mut [f32], stride: usize) {
    let (talls, short) = a.as_chunks::<TALL>();
    for (a, out) in talls.iter().zip(out.chunks_mut(TALL * stride)) {
        rows(a, b, out, stride);
    }
    let out = out
        .get_mut(talls.len() * TALL * stride..)
        .unwrap_or(&mut []);
    let (fours, single) = short.as_chunks::<4>();
    for (a, out) in fours.iter().zip(out.chunks_mut(4 * stride)) {
        rows(a, b, out, stride);
    }
    let out = out.get_mut(fours.len() * 4 * stride..).unwrap_or(&mut []);
    for (a, out) in single.iter().zip(out.chunks_mut(stride)) {
        lanes::dots_many(a, b, &mut out[..b.len()]);
    }
}

/// `R` left rows.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
fn rows<const R: usize>(a: &[&[f32]; R], b: &[&[f32]], out: &mut [f32], stride: usize) {
    let whole = a[0].len() / LANES;
    let step = COLUMNS / LANES;
    for (g, b) in b.chunks(RIGHT).enumerate() {
        let mut sums = [[[0.0; LANES]; R]; RIGHT];
        for first in (0..whole).step_by(step) {
            let vectors = first..whole.min(first + step);
            let a = a.map(|a| &a.as_chunks::<LANES>().0[vectors.clone()]);
            let (wides, rest) = b.as_chunks::<WIDE>();
            let (wide_sums, rest_sums) = sums.as_chunks_mut::<WIDE>();
            for (b, sums) in wides.iter().zip(wide_sums.iter_mut()) {
                let b = b.map(|b| &b.as_chunks::<LANES>().0[vectors.clone()]);
                add(&a, &b, sums);
            }
            let left = wide_sums[wides.len()..].as_flattened_mut();
            let left = if left.is_empty() { rest_sums } else { left };
            for (b, sums) in rest.iter().zip(left) {
                let b = [&b.as_chunks::<LANES>().0[vectors.clone()]];
                add(&a, &b, std::array::from_mut(sums));
            }
        }
        for (j, (b, sums)) in b.iter().zip(&mut sums).enumerate() {
            for (i, (a, sums)) in a.iter().zip(sums).enumerate() {
                let rest = a[LANES * whole..].iter().zip(&b[LANES * whole..]);
                for (lane, (a, b)) in sums.iter_mut().zip(rest) {
                    *lane += a * b;
                }
                out[i * stride + g * RIGHT + j] = lanes::tree(*sums);
            }
        }
    }
}

/// `sums[j][i] += a[i] ⊙ b[j]`, vector by vector.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
fn add<const R: usize, const T: usize>(
    a: &[&[[f32; LANES]]; R],
    b: &[&[[f32; LANES]]; T],
    sums: &mut [[[f32; LANES]; R]; T],
) {
    let count = a[0].len();
    let a = a.map(|a| &a[..count]);
    let b = b.map(|b| &b[..count]);
    let mut lanes = [[_mm512_setzero_ps(); R]; T];
    for (lanes, sums) in lanes.iter_mut().zip(&*sums) {
        for (lanes, sums) in lanes.iter_mut().zip(sums) {
            *lanes = load_f32x16(sums);
        }
    }
    for v in 0..count {
        let mut right = [_mm512_setzero_ps(); T];
        for j in 0..T {
            right[j] = load_f32x16(&b[j][v]);
        }
        for i in 0..R {
            let left = load_f32x16(&a[i][v]);
            for j in 0..T {
                lanes[j][i] = _mm512_add_ps(lanes[j][i], _mm512_mul_ps(left, right[j]));
            }
        }
    }
    for (lanes, sums) in lanes.iter().zip(sums) {
        for (lanes, sums) in lanes.iter().zip(sums) {
            store_f32x16(*lanes, sums);
        }
    }
}

/// Rows and vectors of `ys` that are in registers while all of `xs` are added to them.
const HEADS: usize = 4;
const VECTORS: usize = 4;

/// `ys[h] += factors[h * stride + i] * xs[i]` for each `i` in turn.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn add_scaled_grid(factors: &[f32], stride: usize, xs: &[&[f32]], ys: &mut [f32]) {
    let Some(dim) = xs.first().map(|x| x.len()).filter(|&dim| dim > 0) else {
        return;
    };
    let heads = ys.len() / dim;
    let whole = dim / (VECTORS * LANES) * VECTORS * LANES;
    for first in (0..heads).step_by(HEADS) {
        let count = HEADS.min(heads - first);
        let factors: [&[f32]; HEADS] =
            std::array::from_fn(|h| &factors[(first + h.min(count - 1)) * stride..][..xs.len()]);
        let ys = &mut ys[first * dim..][..count * dim];
        if count == HEADS {
            for at in (0..whole).step_by(VECTORS * LANES) {
                add_columns(&factors, xs, ys, dim, at);
            }
        }
        let done = if count == HEADS { whole } else { 0 };
        for (factors, y) in factors.iter().zip(ys.chunks_exact_mut(dim)) {
            for (x, f) in xs.iter().zip(*factors) {
                for (y, x) in y[done..].iter_mut().zip(&x[done..]) {
                    *y += f * x;
                }
            }
        }
    }
}

/// The columns `at..at + 64` of [`HEADS`] rows.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
fn add_columns(factors: &[&[f32]; HEADS], xs: &[&[f32]], ys: &mut [f32], dim: usize, at: usize) {
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; HEADS];
    for (h, sums) in sums.iter_mut().enumerate() {
        for (v, sum) in sums.iter_mut().enumerate() {
            *sum = load_f32x16(part(&ys[h * dim + at..], v));
        }
    }
    for (i, x) in xs.iter().enumerate() {
        let columns: &[f32; VECTORS * LANES] = part(&x[at..], 0);
        let mut x = [_mm512_setzero_ps(); VECTORS];
        for (v, x) in x.iter_mut().enumerate() {
            *x = load_f32x16(part(columns, v));
        }
        for (sums, factors) in sums.iter_mut().zip(factors) {
            let factor = _mm512_set1_ps(factors[i]);
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = _mm512_add_ps(*sum, _mm512_mul_ps(factor, x));
            }
        }
    }
    for (h, sums) in sums.iter().enumerate() {
        for (v, sum) in sums.iter().enumerate() {
            let at = h * dim + at + v * LANES;
            store_f32x16(*sum, &mut ys[at..].as_chunks_mut::<LANES>().0[0]);
        }
    }
}
