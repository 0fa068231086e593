//! Whole products on the threads of the current pool.

use std::ops::Range;

use rayon::prelude::*;

use super::activations::{ActRow, Activations};
use super::matrix::Matrix;
use super::parts;
use super::q8_lone::STREAM_AHEAD;
use super::q8_panel;
use super::row::RowKernel;
use super::tile::{self, SCRATCH, Scratch, Tokens};
use crate::quant::{ActivationFormat, GgmlType, Layout, PANEL_ROWS};

/// Weight bytes of a task: small enough to stay in the nearest caches while it meets one set of
/// tokens after the other.
const TILE_BYTES: usize = 64 << 10;

/// The same where a task only streams through its weights.
const STREAM_BYTES: usize = 256 << 10;

/// Weight-by-token products below which waking other threads costs more than it saves.
const PARALLEL_PRODUCTS: usize = 1 << 16;

/// Tokens of a task where there are too few rows for every thread: as many as share what is
/// unpacked.
const TOKENS_OF_A_TASK: usize = q8_panel::TOKENS;

/// A weight matrix times activations; see [`super::Kernels::matmul_all`].
#[derive(Debug)]
pub struct Product<'a> {
    w: Matrix<'a>,
    groups: usize,
    x: &'a Activations,
    out: &'a mut [f32],
}

impl<'a> Product<'a> {
    /// `out[t * w.rows() + r] = w[r] · x[t]`.
    #[must_use]
    pub fn new(w: Matrix<'a>, x: &'a Activations, out: &'a mut [f32]) -> Self {
        Self::grouped(w, 1, x, out)
    }

    /// As [`Product::new`], but `w` is that many matrices of equal height, one above the other,
    /// each of which meets its own part of every row of `x`.
    #[must_use]
    pub fn grouped(w: Matrix<'a>, groups: usize, x: &'a Activations, out: &'a mut [f32]) -> Self {
        Self { w, groups, x, out }
    }
}

/// # Panics
/// A shape or a format does not fit; see [`super::Kernels::matmul`].
pub(super) fn run<K: RowKernel>(kernel: K, products: &mut [Product<'_>]) {
    let threads = rayon::current_num_threads();
    let mut tasks = 0;
    let mut work = 0_usize;
    let mut plans = Vec::with_capacity(products.len());
    for product in products {
        let plan = Plan::new::<K>(product, tasks, threads);
        tasks += plan.tasks();
        work = work.saturating_add(plan.work());
        plans.push(plan);
    }
    let task = |i: usize| {
        let next = plans.partition_point(|plan| plan.first_task <= i);
        let plan = &plans[next - 1];
        SCRATCH.with_borrow_mut(|scratch| plan.run(kernel, i - plan.first_task, scratch));
    };
    if work < PARALLEL_PRODUCTS || tasks < 2 {
        (0..tasks).for_each(task);
    } else {
        (0..tasks).into_par_iter().with_max_len(1).for_each(task);
    }
}

/// How a product is cut into tasks: tiles of rows, innermost spans of tokens.
struct Plan<'a> {
    w: Matrix<'a>,
    x: &'a Activations,
    out: Columns,
    groups: usize,
    /// Rows of a tile; the last one of a group may be lower.
    tile: usize,
    tiles_of_a_group: usize,
    /// Tokens of a span.
    span: usize,
    spans: usize,
    first_task: usize,
    /// Whether rows are computed side by side.
    panel: bool,
}

impl<'a> Plan<'a> {
    fn new<K: RowKernel>(product: &'a mut Product<'_>, first_task: usize, threads: usize) -> Self {
        let Product { w, groups, x, out } = product;
        let (w, x, groups) = (*w, *x, *groups);
        let (rows, tokens) = (w.rows(), x.rows());
        assert!(
            groups > 0 && rows.is_multiple_of(groups),
            "{groups} groups of {rows} rows"
        );
        assert_eq!(
            out.len(),
            rows * tokens,
            "results of {rows} rows x {tokens}"
        );
        assert!(
            tokens == 0 || x.cols() == groups * w.cols(),
            "activations of {} columns for {groups} matrices of {} columns",
            x.cols(),
            w.cols()
        );
        let panel = K::PANEL > 0
            && tokens > 1
            && w.ty() == GgmlType::Q8_0
            && x.format() == ActivationFormat::Q8;
        let height = rows / groups;
        let tile = if panel {
            K::PANEL
        } else {
            tile_rows(&w, tokens, threads)
        };
        let tiles_of_a_group = height.div_ceil(tile);
        let tiles = (groups * tiles_of_a_group).max(1);
        // Few tiles: cut the tokens too, in whole groups of those that are packed together.
        let wanted = (4 * threads).div_ceil(tiles);
        let span = tokens
            .div_ceil(wanted)
            .next_multiple_of(TOKENS_OF_A_TASK)
            .max(TOKENS_OF_A_TASK);
        Plan {
            out: Columns {
                start: out.as_mut_ptr(),
                rows,
                tokens,
            },
            w,
            x,
            groups,
            tile,
            tiles_of_a_group,
            span,
            spans: tokens.div_ceil(span),
            first_task,
            panel,
        }
    }

    fn tasks(&self) -> usize {
        self.groups * self.tiles_of_a_group * self.spans
    }

    /// Products of a weight with an activation.
    fn work(&self) -> usize {
        let weights = self.w.rows().saturating_mul(self.w.cols());
        weights.saturating_mul(self.x.rows())
    }

    fn run<K: RowKernel>(&self, kernel: K, task: usize, scratch: &mut Scratch) {
        let (tile, span) = (task / self.spans, task % self.spans);
        let (group, tile) = (tile / self.tiles_of_a_group, tile % self.tiles_of_a_group);
        let height = self.w.rows() / self.groups;
        let start = group * height + tile * self.tile;
        let rows = start..(start + self.tile).min((group + 1) * height);
        let tokens = span * self.span..self.x.rows().min((span + 1) * self.span);
        let columns = group * self.w.cols()..(group + 1) * self.w.cols();
        if self.x.rows() == 1 && self.lone(kernel, rows.clone(), columns.clone()) {
            return;
        }
        if self.panel {
            return self.panels(kernel, rows, tokens, &columns, scratch);
        }
        if parts::lockstep::<K>(&self.w) && self.x.format() == ActivationFormat::Q8K {
            return self.by_token(kernel, rows, tokens, &columns, scratch);
        }
        let len = rows.len() * tokens.len();
        if scratch.tile.len() < len {
            scratch.tile.resize(len, 0.0);
        }
        let results = &mut scratch.tile[..len];
        let part = self.w.row_range(rows.clone());
        let xs = Tokens::Of(self.x, tokens.clone(), columns);
        tile::run(kernel, &part, xs, &mut scratch.rows, results);
        // SAFETY: no other task has these rows and tokens, and `out` outlives the tasks.
        unsafe { self.out.write(rows, tokens, results) };
    }

    /// Rows in the shapes that write token by token.
    fn by_token<K: RowKernel>(
        &self,
        kernel: K,
        rows: Range<usize>,
        tokens: Range<usize>,
        columns: &Range<usize>,
        scratch: &mut Scratch,
    ) {
        let part = self.w.row_range(rows.clone());
        let x = |t| self.x.part(t, columns.clone());
        let xs: Vec<ActRow<'_>> = tokens.clone().map(x).collect();
        let mut results = std::mem::take(&mut scratch.tile);
        results.resize(rows.len() * tokens.len(), 0.0);
        parts::run_whole(kernel, &part, &xs, None, scratch, &mut results);
        for (t, results) in tokens.zip(results.chunks_exact(rows.len())) {
            // SAFETY: no other task has these rows and tokens, and `out` outlives the tasks.
            unsafe { self.out.write_row(t, rows.start, results) };
        }
        scratch.tile = results;
    }

    /// Streams rows past a lone activation; false if this is not how the product goes.
    fn lone<K: RowKernel>(&self, kernel: K, rows: Range<usize>, columns: Range<usize>) -> bool {
        match (self.w.ty(), self.x.part(0, columns.clone())) {
            (GgmlType::Q8_0, ActRow::Q8(_)) if K::Q8_LONE => {
                let Some(x) = self.x.lone(columns) else {
                    return false;
                };
                self.stream(rows, |row, ahead| kernel.q8_0_lone(row, x, ahead));
            }
            (GgmlType::F16, ActRow::F32(x)) if K::F16_LONE => {
                self.stream(rows, |row, ahead| kernel.f16_lone(row, x, ahead));
            }
            _ => return false,
        }
        true
    }

    fn stream(&self, rows: Range<usize>, dot: impl Fn(&[u8], *const u8) -> f32) {
        for r in rows {
            let row = self.w.row(r);
            let result = dot(row, row.as_ptr().wrapping_add(STREAM_AHEAD));
            // SAFETY: no other task has this row, and `out` outlives the tasks.
            unsafe { self.out.write_row(0, r, &[result]) };
        }
    }

    /// Rows side by side, group by group of the tokens.
    fn panels<K: RowKernel>(
        &self,
        kernel: K,
        rows: Range<usize>,
        tokens: Range<usize>,
        columns: &Range<usize>,
        scratch: &mut Scratch,
    ) {
        let start = tokens.start / q8_panel::TOKENS;
        let groups = (start..tokens.end.div_ceil(q8_panel::TOKENS))
            .filter_map(|group| self.x.group(group, columns.clone()));
        let scratch = &mut scratch.panel;
        q8_panel::run(
            kernel,
            &self.w,
            rows,
            groups,
            scratch,
            |g, row, count, sums| {
                let first = (start + g) * q8_panel::TOKENS;
                for (t, sums) in sums.iter().enumerate() {
                    // SAFETY: no other task has these rows and tokens, and `out` outlives the tasks.
                    unsafe { self.out.write_row(first + t, row, &sums[..count]) };
                }
            },
        );
    }
}

/// Few enough rows for the cache, and for every thread to get several tiles.
fn tile_rows(w: &Matrix<'_>, tokens: usize, threads: usize) -> usize {
    // Where tokens are many, whole eights: f32 activations meet as many rows at once.
    let (bytes, least) = if tokens > 1 {
        (TILE_BYTES, 8)
    } else {
        (STREAM_BYTES, 4)
    };
    let cached = bytes / w.row_bytes().max(1);
    let shared = w.rows().div_ceil(4 * threads);
    // Panels are not cut.
    let least = match w.layout() {
        Layout::Plain => least,
        Layout::Panels => PANEL_ROWS,
    };
    cached.min(shared).clamp(least, 256).next_multiple_of(least)
}

/// The output, of which every task writes another part.
struct Columns {
    start: *mut f32,
    rows: usize,
    tokens: usize,
}

// SAFETY: the pointer is only written through methods whose contract excludes races.
unsafe impl Sync for Columns {}

impl Columns {
    /// Transposes the results of the rows `rows` for the tokens `tokens` into place.
    ///
    /// # Safety
    /// The memory behind `start` is valid for `rows * tokens` writes, and no other thread accesses
    /// this part of it meanwhile.
    unsafe fn write(&self, rows: Range<usize>, tokens: Range<usize>, results: &[f32]) {
        assert!(rows.end <= self.rows && tokens.end <= self.tokens);
        assert_eq!(results.len(), rows.len() * tokens.len());
        for (i, t) in tokens.clone().enumerate() {
            for (j, r) in rows.clone().enumerate() {
                // SAFETY: `t < self.tokens` and `r < self.rows`, by the assertion above.
                unsafe {
                    let to = self.start.add(t * self.rows + r);
                    to.write(results[j * tokens.len() + i]);
                }
            }
        }
    }

    /// Writes the results of the rows `first..` for the token `token`.
    ///
    /// # Safety
    /// As [`Columns::write`].
    unsafe fn write_row(&self, token: usize, first: usize, results: &[f32]) {
        assert!(token < self.tokens && first + results.len() <= self.rows);
        // SAFETY: the assertion above keeps the writes within the output.
        unsafe {
            let to = self.start.add(token * self.rows + first);
            std::ptr::copy_nonoverlapping(results.as_ptr(), to, results.len());
        }
    }
}
