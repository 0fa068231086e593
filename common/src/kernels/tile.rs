//! A block of weight rows times activations, on the calling thread.

use std::cell::RefCell;
use std::ops::Range;

use super::activations::{ActRow, Activations};
use super::matrix::Matrix;
use super::q4_k;
use super::q8_panel::PanelScratch;
use super::row::RowKernel;
use crate::quant::{BlockQ8, BlockQ8K, GgmlType, dequantize_row};
use crate::quant::{Mxfp4, Q3K, Q5K, Q6K, Q8_0};

/// The most activations that meet all rows of a tile before the next ones do.
const TOKENS_AT_ONCE: usize = 64;

/// Bytes of the activations that meet a tile together: they and the tile's weights stay in a
/// second-level cache.
const TOKEN_BYTES: usize = 320 << 10;

/// Weight rows that meet f32 activations together where there are fewer activations than this.
const ROWS_AT_ONCE: usize = 4;

/// The same where there are more.
const GRID_ROWS: usize = 8;

/// Buffers of one thread, kept between calls.
#[derive(Default)]
pub(super) struct Scratch {
    /// Weight rows as f32.
    pub(super) rows: Vec<f32>,
    /// Results of a tile before they are spread over the output.
    pub(super) tile: Vec<f32>,
    pub(super) panel: PanelScratch,
    pub(super) q4_k: q4_k::Scratch,
}

thread_local! {
    pub(super) static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Where the activations come from, without making a list of them.
#[derive(Clone)]
pub(super) enum Tokens<'a> {
    Rows(&'a [ActRow<'a>]),
    /// Some columns of some rows.
    Of(&'a Activations, Range<usize>, Range<usize>),
}

impl<'a> Tokens<'a> {
    pub(super) fn len(&self) -> usize {
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
/// A shape or a format does not fit; see [`super::Kernels::tile`].
pub(super) fn run<K: RowKernel>(
    kernel: K,
    w: &Matrix<'_>,
    xs: Tokens<'_>,
    rows: &mut Vec<f32>,
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
    let at_once = (TOKEN_BYTES / bytes.max(1)).clamp(8, TOKENS_AT_ONCE);
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
        let mut part = Part {
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
                part.f32(kernel, &list[..len], rows);
            }
            ActRow::Q8(first) => {
                let mut list = [first; TOKENS_AT_ONCE];
                for (i, slot) in list[..len].iter_mut().enumerate() {
                    let ActRow::Q8(x) = at(i) else { mixed() };
                    *slot = x;
                }
                part.q8(kernel, &list[..len]);
            }
            ActRow::Q8K(first) => {
                let mut list = [first; TOKENS_AT_ONCE];
                for (i, slot) in list[..len].iter_mut().enumerate() {
                    let ActRow::Q8K(x) = at(i) else { mixed() };
                    *slot = x;
                }
                part.q8_k(kernel, &list[..len]);
            }
        }
    }
}

#[cold]
fn mixed() -> ! {
    panic!("activations of one product have different formats")
}

/// All rows of a tile and some of the tokens.
struct Part<'p, 'w> {
    w: &'p Matrix<'w>,
    /// Tokens of the whole product, the distance between rows of `out`.
    tokens: usize,
    start: usize,
    out: &'p mut [f32],
}

impl Part<'_, '_> {
    fn q8_k<K: RowKernel>(&mut self, k: K, xs: &[&[BlockQ8K]]) {
        let ty = self.w.ty();
        self.each_row(xs.len(), |row, out| q8_k_row(k, ty, row, xs, out));
    }

    fn q8<K: RowKernel>(&mut self, k: K, xs: &[&[BlockQ8]]) {
        match self.w.ty() {
            GgmlType::Q8_0 => self.each_row(xs.len(), |r, out| k.small_blocks::<Q8_0>(r, xs, out)),
            GgmlType::Mxfp4 => {
                self.each_row(xs.len(), |r, out| k.small_blocks::<Mxfp4>(r, xs, out));
            }
            ty => panic!("{ty} weights do not meet Q8 activations"),
        }
    }

    fn each_row(&mut self, len: usize, mut product: impl FnMut(&[u8], &mut [f32])) {
        for r in 0..self.w.rows() {
            let at = r * self.tokens + self.start;
            let out = &mut self.out[at..at + len];
            self.w.with_row(r, |row| product(row, out));
        }
    }

    fn f32<K: RowKernel>(&mut self, k: K, xs: &[&[f32]], buffer: &mut Vec<f32>) {
        let (w, cols) = (self.w, self.w.cols());
        if cols == 0 {
            return self.each_row(xs.len(), |_, out| out.fill(0.0));
        }
        if buffer.len() < GRID_ROWS * cols {
            buffer.resize(GRID_ROWS * cols, 0.0);
        }
        if xs.len() >= ROWS_AT_ONCE {
            for first in (0..w.rows()).step_by(GRID_ROWS) {
                let count = GRID_ROWS.min(w.rows() - first);
                for (i, wide) in buffer.chunks_exact_mut(cols).take(count).enumerate() {
                    w.with_row(first + i, |row| widen_row(k, w.ty(), row, wide));
                }
                let wide: [&[f32]; GRID_ROWS] =
                    std::array::from_fn(|i| &buffer[i * cols..][..cols]);
                let out = &mut self.out[first * self.tokens + self.start..];
                k.dots_grid(&wide[..count], xs, out, self.tokens);
            }
            return;
        }
        for first in (0..w.rows()).step_by(ROWS_AT_ONCE) {
            let count = ROWS_AT_ONCE.min(w.rows() - first);
            for (i, wide) in buffer.chunks_exact_mut(cols).take(count).enumerate() {
                w.with_row(first + i, |row| widen_row(k, w.ty(), row, wide));
            }
            let wide: [&[f32]; ROWS_AT_ONCE] = std::array::from_fn(|i| &buffer[i * cols..][..cols]);
            for (t, x) in xs.iter().enumerate() {
                let mut results = [0.0; ROWS_AT_ONCE];
                k.dots_f32(x, &wide[..count], &mut results[..count]);
                for (i, result) in results[..count].iter().enumerate() {
                    self.out[(first + i) * self.tokens + self.start + t] = *result;
                }
            }
        }
    }
}

fn widen_row<K: RowKernel>(k: K, ty: GgmlType, row: &[u8], out: &mut [f32]) {
    match ty {
        GgmlType::F16 => k.widen_f16(row, out),
        GgmlType::BF16 => k.widen_bf16(row, out),
        _ => dequantize_row(ty, row, out),
    }
}

/// One row of a format of 256 weights a block.
pub(super) fn q8_k_row<K: RowKernel>(
    k: K,
    ty: GgmlType,
    row: &[u8],
    xs: &[&[BlockQ8K]],
    out: &mut [f32],
) {
    match ty {
        GgmlType::Q4K => k.q4_k(row, xs, out),
        GgmlType::Q2K => k.q2_k(row, xs, out),
        GgmlType::Q3K => k.super_blocks::<Q3K>(row, xs, out),
        GgmlType::Q5K => k.super_blocks::<Q5K>(row, xs, out),
        GgmlType::Q6K => k.super_blocks::<Q6K>(row, xs, out),
        GgmlType::Iq2Xxs => k.iq2_xxs(row, xs, out),
        ty => panic!("{ty} weights do not meet Q8_K activations"),
    }
}
