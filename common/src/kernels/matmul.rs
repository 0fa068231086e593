//! Whole products on the threads of the current pool.

use std::ops::Range;

use rayon::prelude::*;

use super::instruction_set::InstructionSet;
use super::loops::rows::{self, Tokens};
use super::loops::{SCRATCH, Scratch, gemv, q8_0_gemm};
use super::operands::q8_0_blocks::{Q8_0_ROWS, Q8_0_TOKENS};
use super::operands::{ActRow, Activations, Matrix};
use super::row_range;
use super::select::{Loop, Operands, PARALLEL_PRODUCTS, STREAM_TASK_BYTES, TASK_BYTES, select};
use crate::quant::{Layout, PANEL_ROWS};

/// Tokens of a task where there are too few rows for every thread: as many as share what is
/// unpacked.
const TOKENS_OF_A_TASK: usize = Q8_0_TOKENS;

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
    /// each of which is multiplied with its own part of every row of `x`.
    #[must_use]
    pub fn grouped(w: Matrix<'a>, groups: usize, x: &'a Activations, out: &'a mut [f32]) -> Self {
        Self { w, groups, x, out }
    }
}

/// # Panics
/// A shape or a format does not fit; see [`super::Kernels::matmul_all`].
pub(super) fn run<K: InstructionSet>(kernel: K, products: &mut [Product<'_>]) {
    let threads = rayon::current_num_threads();
    let mut tasks = 0;
    let mut work = 0_usize;
    let mut grids = Vec::with_capacity(products.len());
    for product in products {
        let grid = TaskGrid::new::<K>(product, tasks, threads);
        tasks += grid.tasks();
        work = work.saturating_add(grid.work());
        grids.push(grid);
    }
    let task = |i: usize| {
        let next = grids.partition_point(|grid| grid.first_task <= i);
        let grid = &grids[next - 1];
        SCRATCH.with_borrow_mut(|scratch| grid.run(kernel, i - grid.first_task, scratch));
    };
    if work < PARALLEL_PRODUCTS || tasks < 2 {
        (0..tasks).for_each(task);
    } else {
        (0..tasks).into_par_iter().with_max_len(1).for_each(task);
    }
}

/// How a product is cut into tasks: ranges of rows, innermost spans of tokens.
struct TaskGrid<'a> {
    w: Matrix<'a>,
    x: &'a Activations,
    out: Columns,
    groups: usize,
    /// Rows of a range; the last one of a group may have fewer.
    rows: usize,
    ranges_of_a_group: usize,
    /// Tokens of a span.
    span: usize,
    spans: usize,
    first_task: usize,
    chosen: Loop,
}

impl<'a> TaskGrid<'a> {
    fn new<K: InstructionSet>(
        product: &'a mut Product<'_>,
        first_task: usize,
        threads: usize,
    ) -> Self {
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
        let operands = Operands {
            ty: w.ty(),
            layout: w.layout(),
            format: x.format(),
            tokens,
            laid_out: x.is_laid_out(w.cols()),
        };
        let chosen = select(K::ISA, operands);
        let height = rows / groups;
        let range = match chosen {
            Loop::Q8_0Gemm32Rows => Q8_0_ROWS,
            _ => rows_of_a_task(&w, tokens, threads),
        };
        let ranges_of_a_group = height.div_ceil(range);
        let ranges = (groups * ranges_of_a_group).max(1);
        // Few ranges: cut the tokens too, in whole groups of those that are packed together.
        let wanted = (4 * threads).div_ceil(ranges);
        let span = tokens
            .div_ceil(wanted)
            .next_multiple_of(TOKENS_OF_A_TASK)
            .max(TOKENS_OF_A_TASK);
        TaskGrid {
            out: Columns {
                start: out.as_mut_ptr(),
                rows,
                tokens,
            },
            w,
            x,
            groups,
            rows: range,
            ranges_of_a_group,
            span,
            spans: tokens.div_ceil(span),
            first_task,
            chosen,
        }
    }

    fn tasks(&self) -> usize {
        self.groups * self.ranges_of_a_group * self.spans
    }

    /// Products of a weight with an activation.
    fn work(&self) -> usize {
        let weights = self.w.rows().saturating_mul(self.w.cols());
        weights.saturating_mul(self.x.rows())
    }

    fn run<K: InstructionSet>(&self, kernel: K, task: usize, scratch: &mut Scratch) {
        let (range, span) = (task / self.spans, task % self.spans);
        let group = range / self.ranges_of_a_group;
        let range = range % self.ranges_of_a_group;
        let height = self.w.rows() / self.groups;
        let start = group * height + range * self.rows;
        let rows = start..(start + self.rows).min((group + 1) * height);
        let tokens = span * self.span..self.x.rows().min((span + 1) * self.span);
        let columns = group * self.w.cols()..(group + 1) * self.w.cols();
        let write_one = |r, result| {
            // SAFETY: no other task has this row, and `out` outlives the tasks.
            unsafe { self.out.write_row(0, r, &[result]) };
        };
        match (self.chosen, self.x.part(tokens.start, columns.clone())) {
            (Loop::Q8_0Gemv, _) => {
                gemv::q8_0(kernel, &self.w, rows, self.x.sixteens(columns), write_one);
            }
            (Loop::F16Gemv, ActRow::F32(x)) => gemv::f16(kernel, &self.w, rows, x, write_one),
            (Loop::Q8_0Gemm32Rows, _) => self.q8_0_gemm(kernel, rows, tokens, &columns, scratch),
            (Loop::Q4K(_), _) => self.by_token(kernel, rows, tokens, &columns, scratch),
            _ => self.row_by_row(kernel, rows, tokens, columns, scratch),
        }
    }

    /// Rows in the loop for any type.
    fn row_by_row<K: InstructionSet>(
        &self,
        kernel: K,
        rows: Range<usize>,
        tokens: Range<usize>,
        columns: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let len = rows.len() * tokens.len();
        if scratch.results.len() < len {
            scratch.results.resize(len, 0.0);
        }
        let results = &mut scratch.results[..len];
        let part = self.w.row_range(rows.clone());
        let xs = Tokens::Of(self.x, tokens.clone(), columns);
        rows::run(kernel, &part, xs, &mut scratch.rows, results);
        // SAFETY: no other task has these rows and tokens, and `out` outlives the tasks.
        unsafe { self.out.write(rows, tokens, results) };
    }

    /// Rows in the loops that write token by token.
    fn by_token<K: InstructionSet>(
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
        let mut results = std::mem::take(&mut scratch.results);
        results.resize(rows.len() * tokens.len(), 0.0);
        row_range::run(kernel, &part, &xs, None, scratch, &mut results);
        for (t, results) in tokens.zip(results.chunks_exact(rows.len())) {
            // SAFETY: no other task has these rows and tokens, and `out` outlives the tasks.
            unsafe { self.out.write_row(t, rows.start, results) };
        }
        scratch.results = results;
    }

    /// Rows side by side, group by group of the tokens.
    fn q8_0_gemm<K: InstructionSet>(
        &self,
        kernel: K,
        rows: Range<usize>,
        tokens: Range<usize>,
        columns: &Range<usize>,
        scratch: &mut Scratch,
    ) {
        let start = tokens.start / Q8_0_TOKENS;
        let groups = (start..tokens.end.div_ceil(Q8_0_TOKENS))
            .filter_map(|group| self.x.group(group, columns.clone()));
        let scratch = &mut scratch.q8_0;
        q8_0_gemm::run(
            kernel,
            &self.w,
            rows,
            groups,
            scratch,
            |g, row, count, sums| {
                let first = (start + g) * Q8_0_TOKENS;
                for (t, sums) in sums.iter().enumerate() {
                    // SAFETY: no other task has these rows and tokens, and `out` outlives the tasks.
                    unsafe { self.out.write_row(first + t, row, &sums[..count]) };
                }
            },
        );
    }
}

/// Few enough rows for the cache, and for every thread to get several ranges.
fn rows_of_a_task(w: &Matrix<'_>, tokens: usize, threads: usize) -> usize {
    // Where tokens are many, whole eights: as many rows are multiplied with f32 activations at once.
    let (bytes, least) = if tokens > 1 {
        (TASK_BYTES, 8)
    } else {
        (STREAM_TASK_BYTES, 4)
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
    /// this part of it during the call.
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
