//! A whole product on the threads of the current pool.

use std::ops::Range;

use rayon::prelude::*;

use super::activations::Activations;
use super::matrix::Matrix;
use super::row::RowKernel;
use super::tile::{self, SCRATCH, Tokens};

/// Weight bytes of a task: small enough to stay in the nearest caches while it meets one set of
/// tokens after the other.
const TILE_BYTES: usize = 64 << 10;

/// Weight-by-token products below which waking other threads costs more than it saves.
const PARALLEL_PRODUCTS: usize = 1 << 16;

/// `out[t * rows + r] = w[r] · x[t]`.
///
/// # Panics
/// A shape or a format does not fit; see [`super::Kernels::matmul`].
pub(super) fn run<K: RowKernel>(kernel: K, w: &Matrix<'_>, x: &Activations, out: &mut [f32]) {
    let (rows, tokens) = (w.rows(), x.rows());
    assert_eq!(
        out.len(),
        rows * tokens,
        "results of {rows} rows x {tokens}"
    );
    let out = Columns {
        start: out.as_mut_ptr(),
        rows,
        tokens,
    };
    let task = |range: Range<usize>| {
        SCRATCH.with_borrow_mut(|scratch| {
            let len = range.len() * tokens;
            if scratch.tile.len() < len {
                scratch.tile.resize(len, 0.0);
            }
            let results = &mut scratch.tile[..len];
            let part = w.row_range(range.clone());
            tile::run(kernel, &part, Tokens::All(x), &mut scratch.rows, results);
            // SAFETY: the ranges of the tasks do not overlap and `out` outlives the tasks.
            unsafe { out.write(range, results) };
        });
    };
    let products = rows.saturating_mul(w.cols()).saturating_mul(tokens);
    let tile_rows = rows_of_a_tile(w, rayon::current_num_threads());
    if products < PARALLEL_PRODUCTS || tile_rows >= rows {
        return task(0..rows);
    }
    let tiles = rows.div_ceil(tile_rows);
    (0..tiles).into_par_iter().for_each(|i| {
        task(i * tile_rows..rows.min((i + 1) * tile_rows));
    });
}

/// Few enough rows for the cache, and for every thread to get several tiles.
fn rows_of_a_tile(w: &Matrix<'_>, threads: usize) -> usize {
    let cached = TILE_BYTES / w.row_bytes().max(1);
    let shared = w.rows().div_ceil(4 * threads);
    // Whole fours: lone f32 activations meet four rows at once.
    cached.min(shared).clamp(4, 256).next_multiple_of(4)
}

/// The output, of which every task writes other columns.
struct Columns {
    start: *mut f32,
    rows: usize,
    tokens: usize,
}

// SAFETY: the pointer is only written through `write`, whose contract excludes races.
unsafe impl Sync for Columns {}

impl Columns {
    /// Transposes the results of the rows `range` into place.
    ///
    /// # Safety
    /// The memory behind `start` is valid for `rows * tokens` writes, and no other thread accesses
    /// the columns `range` meanwhile.
    unsafe fn write(&self, range: Range<usize>, results: &[f32]) {
        assert!(range.end <= self.rows && results.len() == range.len() * self.tokens);
        for (r, results) in range.zip(results.chunks_exact(self.tokens.max(1))) {
            for (t, &value) in results.iter().enumerate() {
                // SAFETY: `t < tokens` and `r < rows`, by the assertion above.
                unsafe { self.start.add(t * self.rows + r).write(value) };
            }
        }
    }
}
