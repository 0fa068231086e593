//! A range of rows times activations on the calling thread, token by token in the output: over all
//! columns, or with the blocks of 256 columns kept apart.

use super::instruction_set::InstructionSet;
use super::loops::Scratch;
use super::loops::q4_k::Q4KProduct;
use super::loops::rows::{self, Tokens, super_row};
use super::operands::{ActRow, Matrix};
use super::select::{Loop, Operands, SuperType, select};
use crate::quant::BlockQ8K;

/// Columns of a block.
const WIDTH: usize = 256;

/// The loop for rows of `w` times `tokens` rows such as `x`.
fn loop_of<K: InstructionSet>(w: &Matrix<'_>, x: &ActRow<'_>, tokens: usize) -> Loop {
    let operands = Operands {
        ty: w.ty(),
        layout: w.layout(),
        format: x.format(),
        tokens,
        laid_out: false,
    };
    select(K::ISA, operands)
}

/// The sums over all columns: `out[t * rows + r]`.
///
/// # Panics
/// A shape or a format does not fit; see [`super::Kernels::multiply_rows`].
pub(super) fn run<K: InstructionSet>(
    k: K,
    w: &Matrix<'_>,
    xs: &[ActRow<'_>],
    then: Option<&Matrix<'_>>,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let (rows, tokens) = (w.rows(), xs.len());
    assert_eq!(
        out.len(),
        rows * tokens,
        "results of {rows} rows x {tokens}"
    );
    let Some(first) = xs.first() else { return };
    let wide: Option<Vec<&[BlockQ8K]>> = xs
        .iter()
        .map(|x| match x {
            ActRow::Q8K(blocks) if WIDTH * blocks.len() == w.cols() => Some(*blocks),
            _ => None,
        })
        .collect();
    if let (Loop::Q4K(_), Some(xs)) = (loop_of::<K>(w, first, tokens), wide) {
        let product = Q4KProduct { w, tokens, then };
        return product.run::<K, false>(k, |b, t| &xs[t][b], &mut scratch.q4_k, out);
    }
    scratch.results.resize(out.len(), 0.0);
    let results = &mut scratch.results[..];
    rows::run(k, w, Tokens::Rows(xs), &mut scratch.rows, results);
    for (r, results) in results.chunks_exact(tokens).enumerate() {
        for (t, result) in results.iter().enumerate() {
            out[t * rows + r] = *result;
        }
    }
}

/// The sums over each block of columns: `out[(t * blocks + b) * rows + r]`.
///
/// # Panics
/// A shape or a format does not fit; see [`super::Kernels::multiply_rows_by_block`].
pub(super) fn run_by_block<K: InstructionSet>(
    k: K,
    w: &Matrix<'_>,
    xs: &[ActRow<'_>],
    then: Option<&Matrix<'_>>,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let blocks = w.cols().div_ceil(WIDTH);
    let tokens = xs.len().checked_div(blocks).unwrap_or(0);
    assert_eq!(xs.len(), tokens * blocks, "activations of {blocks} blocks");
    assert_eq!(
        out.len(),
        xs.len() * w.rows(),
        "results of {} rows x {tokens} in {blocks} blocks",
        w.rows()
    );
    let Some(first) = xs.first().filter(|_| w.rows() > 0) else {
        return;
    };
    let shape = BlockResults {
        blocks,
        tokens,
        rows: w.rows(),
    };
    // A format of smaller blocks may end in a narrower block of columns; it goes the slow way.
    let wide: Option<Vec<&BlockQ8K>> = xs
        .iter()
        .map(|x| match x {
            ActRow::Q8K([block]) => Some(block),
            _ => None,
        })
        .collect();
    match (loop_of::<K>(w, first, tokens), wide) {
        (Loop::Q4K(_), Some(xs)) => {
            let product = Q4KProduct { w, tokens, then };
            let x = |b: usize, t: usize| xs[b * tokens + t];
            product.run::<K, true>(k, x, &mut scratch.q4_k, out);
        }
        (Loop::SuperBlocks(ty), Some(xs)) => shape.row_by_row(k, ty, w, &xs, out),
        _ => shape.strip_by_strip(k, w, xs, scratch, out),
    }
}

/// Where the results of each block of columns go.
#[derive(Clone, Copy)]
struct BlockResults {
    blocks: usize,
    tokens: usize,
    rows: usize,
}

impl BlockResults {
    fn at(self, token: usize, block: usize, row: usize) -> usize {
        (token * self.blocks + block) * self.rows + row
    }

    fn row_by_row<K: InstructionSet>(
        self,
        k: K,
        ty: SuperType,
        w: &Matrix<'_>,
        xs: &[&BlockQ8K],
        out: &mut [f32],
    ) {
        let xs: Vec<&[BlockQ8K]> = xs.iter().map(|x| std::slice::from_ref(*x)).collect();
        let mut results = vec![0.0; self.tokens];
        let bytes = w.ty().block_bytes();
        for r in 0..self.rows {
            let blocks = w
                .row(r)
                .chunks_exact(bytes)
                .zip(xs.chunks_exact(self.tokens));
            for (b, (block, xs)) in blocks.enumerate() {
                super_row(k, ty, block, xs, &mut results);
                for (t, result) in results.iter().enumerate() {
                    out[self.at(t, b, r)] = *result;
                }
            }
        }
    }

    fn strip_by_strip<K: InstructionSet>(
        self,
        k: K,
        w: &Matrix<'_>,
        xs: &[ActRow<'_>],
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let Scratch { rows, results, .. } = scratch;
        results.resize(self.rows * self.tokens, 0.0);
        for (b, xs) in xs.chunks_exact(self.tokens).enumerate() {
            let columns = b * WIDTH..w.cols().min((b + 1) * WIDTH);
            let strip = w
                .column_strip(columns)
                .unwrap_or_else(|error| panic!("blocks of {WIDTH} columns: {error}"));
            rows::run(k, &strip, Tokens::Rows(xs), rows, results);
            for (r, results) in results.chunks_exact(self.tokens).enumerate() {
                for (t, result) in results.iter().enumerate() {
                    out[self.at(t, b, r)] = *result;
                }
            }
        }
    }
}
