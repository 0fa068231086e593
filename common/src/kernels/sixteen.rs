//! Q4_K, sixteen rows at a time: each row has its own lane, so nothing is added across lanes.
//!
//! Sixteen rows read in lockstep would be sixteen streams from memory, of which a core's
//! prefetcher loses most. So the rows of the next sixteen are asked for in their order while
//! these are computed, and what is read in lockstep is already near.

use super::matrix::Matrix;
use super::row::RowKernel;
use super::scalar;
use crate::quant::{BlockQ8K, IntBlock, Q4K, SuperBlock};

/// Rows at a time.
pub(super) const ROWS: usize = 16;

/// A block of each of the rows.
pub(super) type Blocks<'a> = [&'a [u8; 144]; ROWS];

/// What each row adds to the sums of one activation.
pub(super) type Sums = [f32; ROWS];

/// Adds the rows `first..first + 16` of `w` times every activation to `out`. `xs` holds the
/// blocks of the activations, the first one of all, then the second one of all.
pub(super) fn add_rows<K: RowKernel>(
    k: K,
    w: &Matrix<'_>,
    first: usize,
    xs: &[&BlockQ8K],
    out: &mut [Sums],
) {
    each_block(k, w, first, xs, out.len(), |_, w, xs| {
        k.q4_k_sixteen(w, xs, out)
    });
}

/// As [`add_rows`], but calls `part` with every block and the sums of that block alone.
pub(super) fn rows_in_parts<K: RowKernel>(
    k: K,
    w: &Matrix<'_>,
    first: usize,
    xs: &[&BlockQ8K],
    sums: &mut [Sums],
    mut part: impl FnMut(usize, &[Sums]),
) {
    each_block(k, w, first, xs, sums.len(), |b, w, xs| {
        sums.fill([0.0; ROWS]);
        k.q4_k_sixteen(w, xs, sums);
        part(b, sums);
    });
}

fn each_block<'x, K: RowKernel>(
    k: K,
    w: &Matrix<'_>,
    first: usize,
    xs: &[&'x BlockQ8K],
    tokens: usize,
    mut each: impl FnMut(usize, Blocks<'_>, &[&'x BlockQ8K]),
) {
    let rows: [&[[u8; 144]]; ROWS] = std::array::from_fn(|r| Q4K::blocks(w.row(first + r)));
    let blocks = rows[0].len();
    let after = |b: usize| first + ROWS + b * ROWS / blocks;
    for (b, xs) in xs.chunks_exact(tokens).take(blocks).enumerate() {
        for row in after(b)..after(b + 1).min(w.rows()) {
            k.prefetch(w.row(row));
        }
        each(b, std::array::from_fn(|r| &rows[r][b]), xs);
    }
}

/// `out[t][r] += w[r] · xs[t]`, as the scalar definition has it.
pub(super) fn add_block(w: Blocks<'_>, xs: &[&BlockQ8K], out: &mut [Sums]) {
    let mut block = IntBlock::ZERO;
    for (r, bytes) in w.iter().enumerate() {
        Q4K::unpack(bytes, &mut block);
        for (x, out) in xs.iter().zip(out.iter_mut()) {
            let sum = scalar::weighted_sum(&block, x);
            let mins = scalar::sum_of_mins(&block, x);
            out[r] += scalar::term::<Q4K>(&block, x.d, sum, mins);
        }
    }
}
