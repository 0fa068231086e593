//! Rows times activations with the blocks of 256 columns kept apart.

use super::activations::ActRow;
use super::matrix::Matrix;
use super::row::RowKernel;
use super::sixteen::{self, Sums};
use super::tile::{self, Scratch, Tokens};
use crate::quant::{BlockQ8K, GgmlType};

/// Columns of a part.
const WIDTH: usize = 256;

/// # Panics
/// A shape or a format does not fit; see [`super::Kernels::tile_parts`].
pub(super) fn run<K: RowKernel>(
    k: K,
    w: &Matrix<'_>,
    xs: &[ActRow<'_>],
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
        Some(xs) if w.ty() == GgmlType::Q4K && K::SIXTEEN && tokens >= K::SIXTEEN_FROM => {
            let done = shape.sixteens(k, w, &xs, out);
            shape.row_by_row(k, w, done, &xs, out);
        }
        Some(xs) if w.ty().block_elements() == WIDTH => shape.row_by_row(k, w, 0, &xs, out),
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

    /// Whole sixteens of rows; returns how many rows that were.
    fn sixteens<K: RowKernel>(
        self,
        k: K,
        w: &Matrix<'_>,
        xs: &[&BlockQ8K],
        out: &mut [f32],
    ) -> usize {
        let done = self.rows / sixteen::ROWS * sixteen::ROWS;
        let mut sums: Vec<Sums> = vec![[0.0; sixteen::ROWS]; self.tokens];
        for first in (0..done).step_by(sixteen::ROWS) {
            sixteen::rows_in_parts(k, w, first, xs, &mut sums, |b, sums| {
                for (t, sums) in sums.iter().enumerate() {
                    out[self.at(t, b, first)..][..sixteen::ROWS].copy_from_slice(sums);
                }
            });
        }
        done
    }

    fn row_by_row<K: RowKernel>(
        self,
        k: K,
        w: &Matrix<'_>,
        first: usize,
        xs: &[&BlockQ8K],
        out: &mut [f32],
    ) {
        let xs: Vec<&[BlockQ8K]> = xs.iter().map(|x| std::slice::from_ref(*x)).collect();
        let mut results = vec![0.0; self.tokens];
        let bytes = w.ty().block_bytes();
        for r in first..self.rows {
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
