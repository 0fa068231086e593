//! Rows times activations, token by token in the output: over all columns, or with the blocks of
//! 256 columns kept apart.

use super::activations::ActRow;
use super::matrix::Matrix;
use super::q4_k::Product;
use super::row::RowKernel;
use super::tile::{self, Scratch, Tokens};
use crate::quant::{BlockQ8K, GgmlType, Layout};

/// Columns of a part.
const WIDTH: usize = 256;

/// Whether there are shapes of their own for such a product, which write token by token.
pub(super) fn lockstep<K: RowKernel>(w: &Matrix<'_>) -> bool {
    let stored = w.layout() == Layout::Panels;
    w.ty() == GgmlType::Q4K && (stored || K::SIXTEEN || K::EIGHT || K::TERMS)
}

/// The sums over all columns: `out[t * rows + r]`.
///
/// # Panics
/// A shape or a format does not fit; see [`super::Kernels::tile_by_token`].
pub(super) fn run_whole<K: RowKernel>(
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
    let wide: Option<Vec<&[BlockQ8K]>> = xs
        .iter()
        .map(|x| match x {
            ActRow::Q8K(blocks) if 256 * blocks.len() == w.cols() => Some(*blocks),
            _ => None,
        })
        .collect();
    if let Some(xs) = wide.filter(|_| lockstep::<K>(w)) {
        let product = Product { w, tokens, then };
        return product.run::<K, false>(k, |b, t| &xs[t][b], &mut scratch.q4_k, out);
    }
    scratch.tile.resize(out.len(), 0.0);
    let results = &mut scratch.tile[..];
    tile::run(k, w, Tokens::Rows(xs), &mut scratch.rows, results);
    for (r, results) in results.chunks_exact(tokens.max(1)).enumerate() {
        for (t, result) in results.iter().enumerate() {
            out[t * rows + r] = *result;
        }
    }
}

/// # Panics
/// A shape or a format does not fit; see [`super::Kernels::tile_parts`].
pub(super) fn run<K: RowKernel>(
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
    assert_eq!(out.len(), xs.len() * w.rows(), "results of parts");
    if tokens == 0 || w.rows() == 0 {
        return;
    }
    let shape = Shape {
        blocks,
        tokens,
        rows: w.rows(),
    };
    // A format of smaller blocks may end in a narrower part; it goes the slow way.
    let wide: Option<Vec<&BlockQ8K>> = xs
        .iter()
        .map(|x| match x {
            ActRow::Q8K([block]) => Some(block),
            _ => None,
        })
        .collect();
    match wide {
        Some(xs) if lockstep::<K>(w) => {
            let product = Product { w, tokens, then };
            let x = |b: usize, t: usize| xs[b * tokens + t];
            product.run::<K, true>(k, x, &mut scratch.q4_k, out);
        }
        Some(xs) if w.ty().block_elements() == WIDTH => shape.row_by_row(k, w, &xs, out),
        _ => shape.strip_by_strip(k, w, xs, scratch, out),
    }
}

#[derive(Clone, Copy)]
struct Shape {
    blocks: usize,
    tokens: usize,
    rows: usize,
}

impl Shape {
    fn at(self, token: usize, block: usize, row: usize) -> usize {
        (token * self.blocks + block) * self.rows + row
    }

    fn row_by_row<K: RowKernel>(self, k: K, w: &Matrix<'_>, xs: &[&BlockQ8K], out: &mut [f32]) {
        let xs: Vec<&[BlockQ8K]> = xs.iter().map(|x| std::slice::from_ref(*x)).collect();
        let mut results = vec![0.0; self.tokens];
        let bytes = w.ty().block_bytes();
        for r in 0..self.rows {
            let parts = w
                .row(r)
                .chunks_exact(bytes)
                .zip(xs.chunks_exact(self.tokens));
            for (b, (part, xs)) in parts.enumerate() {
                tile::q8_k_row(k, w.ty(), part, xs, &mut results);
                for (t, result) in results.iter().enumerate() {
                    out[self.at(t, b, r)] = *result;
                }
            }
        }
    }

    fn strip_by_strip<K: RowKernel>(
        self,
        k: K,
        w: &Matrix<'_>,
        xs: &[ActRow<'_>],
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let Scratch {
            rows,
            tile: results,
            ..
        } = scratch;
        results.resize(self.rows * self.tokens, 0.0);
        for (b, xs) in xs.chunks_exact(self.tokens).enumerate() {
            let columns = b * WIDTH..w.cols().min((b + 1) * WIDTH);
            let strip = w
                .column_strip(columns)
                .unwrap_or_else(|error| panic!("no parts of {WIDTH} columns: {error}"));
            tile::run(k, &strip, Tokens::Rows(xs), rows, results);
            for (r, results) in results.chunks_exact(self.tokens).enumerate() {
                for (t, result) in results.iter().enumerate() {
                    out[self.at(t, b, r)] = *result;
                }
            }
        }
    }
}
