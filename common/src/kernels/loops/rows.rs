//! Weights of any type, row by row: each row is unpacked once for the activations that are
//! multiplied with it together.

use std::ops::Range;

use super::super::instruction_set::InstructionSet;
use super::super::operands::{ActRow, Activations, Matrix};
use super::super::select::{
    F32_ROWS_LARGE_BATCH, F32_ROWS_SMALL_BATCH, TOKEN_BYTES, TOKENS_AT_LEAST,
};
use super::super::select::{Loop, SmallType, SuperType, TOKENS_AT_ONCE, select_f32};
use crate::quant::{BlockQ8, BlockQ8K, GgmlType, dequantize_row};
use crate::quant::{Mxfp4, Q3K, Q5K, Q6K, Q8_0};

/// Where the activations come from, without making a list of them.
#[derive(Clone)]
pub(in crate::kernels) enum Tokens<'a> {
    Rows(&'a [ActRow<'a>]),
    /// Some columns of some rows.
    Of(&'a Activations, Range<usize>, Range<usize>),
}

impl<'a> Tokens<'a> {
    fn len(&self) -> usize {
        match self {
            Tokens::Rows(rows) => rows.len(),
            Tokens::Of(_, rows, _) => rows.len(),
        }
    }

    fn get(&self, i: usize) -> ActRow<'a> {
        match self {
            Tokens::Rows(rows) => rows[i],
            Tokens::Of(all, rows, columns) => all.part(rows.start + i, columns.clone()),
        }
    }
}

/// `out[r * tokens + t] = w[r] · xs[t]`.
///
/// # Panics
/// A shape or a format does not fit; see [`crate::kernels::Kernels::multiply_rows`].
pub(in crate::kernels) fn run<K: InstructionSet>(
    k: K,
    w: &Matrix<'_>,
    xs: Tokens<'_>,
    buffer: &mut Vec<f32>,
    out: &mut [f32],
) {
    let tokens = xs.len();
    assert_eq!(
        out.len(),
        w.rows() * tokens,
        "results of {} rows x {tokens}",
        w.rows()
    );
    if tokens == 0 {
        return;
    }
    let (_, bytes) = xs.get(0).place();
    let at_once = (TOKEN_BYTES / bytes.max(1)).clamp(TOKENS_AT_LEAST, TOKENS_AT_ONCE);
    for start in (0..tokens).step_by(at_once) {
        let len = at_once.min(tokens - start);
        let at = |i: usize| {
            let x = xs.get(start + i);
            assert_eq!(
                x.cols(),
                w.cols(),
                "activations for a matrix of {} columns",
                w.cols()
            );
            x
        };
        let mut results = RowResults {
            w,
            tokens,
            start,
            out,
        };
        match at(0) {
            ActRow::F32(first) => {
                let mut list = [first; TOKENS_AT_ONCE];
                for (i, slot) in list[..len].iter_mut().enumerate() {
                    let ActRow::F32(x) = at(i) else { mixed() };
                    *slot = x;
                }
                results.f32(k, &list[..len], buffer);
            }
            ActRow::Q8(first) => {
                let mut list = [first; TOKENS_AT_ONCE];
                for (i, slot) in list[..len].iter_mut().enumerate() {
                    let ActRow::Q8(x) = at(i) else { mixed() };
                    *slot = x;
                }
                results.q8(k, &list[..len]);
            }
            ActRow::Q8K(first) => {
                let mut list = [first; TOKENS_AT_ONCE];
                for (i, slot) in list[..len].iter_mut().enumerate() {
                    let ActRow::Q8K(x) = at(i) else { mixed() };
                    *slot = x;
                }
                results.q8_k(k, &list[..len]);
            }
        }
    }
}

#[cold]
fn mixed() -> ! {
    panic!("activations of one product have different formats")
}

/// All rows of a range times some of the activations.
struct RowResults<'p, 'w> {
    w: &'p Matrix<'w>,
    /// Activations of the whole product, the distance between rows of `out`.
    tokens: usize,
    /// The first of these activations.
    start: usize,
    out: &'p mut [f32],
}

impl RowResults<'_, '_> {
    fn q8_k<K: InstructionSet>(&mut self, k: K, xs: &[&[BlockQ8K]]) {
        let ty = SuperType::of(self.w.ty());
        self.each_row(xs.len(), |row, out| super_row(k, ty, row, xs, out));
    }

    fn q8<K: InstructionSet>(&mut self, k: K, xs: &[&[BlockQ8]]) {
        match SmallType::of(self.w.ty()) {
            SmallType::Q8_0 => {
                self.each_row(xs.len(), |r, out| k.small_blocks::<Q8_0>(r, xs, out));
            }
            SmallType::Mxfp4 => {
                self.each_row(xs.len(), |r, out| k.small_blocks::<Mxfp4>(r, xs, out));
            }
        }
    }

    fn each_row(&mut self, len: usize, mut product: impl FnMut(&[u8], &mut [f32])) {
        for r in 0..self.w.rows() {
            let at = r * self.tokens + self.start;
            let out = &mut self.out[at..at + len];
            self.w.with_row(r, |row| product(row, out));
        }
    }

    fn f32<K: InstructionSet>(&mut self, k: K, xs: &[&[f32]], buffer: &mut Vec<f32>) {
        let (w, cols) = (self.w, self.w.cols());
        if cols == 0 {
            return self.each_row(xs.len(), |_, out| out.fill(0.0));
        }
        if buffer.len() < F32_ROWS_LARGE_BATCH * cols {
            buffer.resize(F32_ROWS_LARGE_BATCH * cols, 0.0);
        }
        if select_f32(xs.len()) == Loop::F32Gemm8Rows {
            for first in (0..w.rows()).step_by(F32_ROWS_LARGE_BATCH) {
                let count = F32_ROWS_LARGE_BATCH.min(w.rows() - first);
                for (i, wide) in buffer.chunks_exact_mut(cols).take(count).enumerate() {
                    w.with_row(first + i, |row| widen_row(k, w.ty(), row, wide));
                }
                let wide: [&[f32]; F32_ROWS_LARGE_BATCH] =
                    std::array::from_fn(|i| &buffer[i * cols..][..cols]);
                let out = &mut self.out[first * self.tokens + self.start..];
                k.dots_grid(&wide[..count], xs, out, self.tokens);
            }
            return;
        }
        for first in (0..w.rows()).step_by(F32_ROWS_SMALL_BATCH) {
            let count = F32_ROWS_SMALL_BATCH.min(w.rows() - first);
            for (i, wide) in buffer.chunks_exact_mut(cols).take(count).enumerate() {
                w.with_row(first + i, |row| widen_row(k, w.ty(), row, wide));
            }
            let wide: [&[f32]; F32_ROWS_SMALL_BATCH] =
                std::array::from_fn(|i| &buffer[i * cols..][..cols]);
            for (t, x) in xs.iter().enumerate() {
                let mut results = [0.0; F32_ROWS_SMALL_BATCH];
                k.dots_f32(x, &wide[..count], &mut results[..count]);
                for (i, result) in results[..count].iter().enumerate() {
                    self.out[(first + i) * self.tokens + self.start + t] = *result;
                }
            }
        }
    }
}

fn widen_row<K: InstructionSet>(k: K, ty: GgmlType, row: &[u8], out: &mut [f32]) {
    match ty {
        GgmlType::F16 => k.widen_f16(row, out),
        GgmlType::BF16 => k.widen_bf16(row, out),
        _ => dequantize_row(ty, row, out),
    }
}

/// `out[t] = row · xs[t]` for a format of 256 weights a block.
pub(in crate::kernels) fn super_row<K: InstructionSet>(
    k: K,
    ty: SuperType,
    row: &[u8],
    xs: &[&[BlockQ8K]],
    out: &mut [f32],
) {
    match ty {
        SuperType::Q4K => k.q4_k(row, xs, out),
        SuperType::Q2K => k.q2_k(row, xs, out),
        SuperType::Q3K => k.super_blocks::<Q3K>(row, xs, out),
        SuperType::Q5K => k.super_blocks::<Q5K>(row, xs, out),
        SuperType::Q6K => k.super_blocks::<Q6K>(row, xs, out),
        SuperType::Iq2Xxs => k.iq2_xxs(row, xs, out),
    }
}
