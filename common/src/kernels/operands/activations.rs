//! Rows of activations in the format that the weights are multiplied with.

use std::ops::Range;

use rayon::prelude::*;

use super::q8_0_blocks::{PackedBlock, Q8_0_TOKENS, SixteenBlocks, TokenGroup};
use crate::quant::{ActivationFormat, BlockQ8, BlockQ8K, quantize_q8, quantize_q8_k};

/// Rows times columns from which quantising is worth waking other threads.
const PARALLEL_VALUES: usize = 1 << 16;

/// Blocks that are packed by one task, of each row of a group.
const PACKED_AT_ONCE: usize = 32;

/// Columns of a [`SixteenBlocks`].
const SIXTEEN_COLUMNS: usize = 16 * 32;

/// One row of activations.
#[derive(Clone, Copy, Debug)]
pub enum ActRow<'a> {
    /// Plain values, one a column.
    F32(&'a [f32]),
    /// Blocks of 32 columns.
    Q8(&'a [BlockQ8]),
    /// Blocks of 256 columns.
    Q8K(&'a [BlockQ8K]),
}

impl ActRow<'_> {
    /// Columns of the row, whole blocks of them.
    #[must_use]
    pub fn cols(&self) -> usize {
        match self {
            ActRow::F32(values) => values.len(),
            ActRow::Q8(blocks) => 32 * blocks.len(),
            ActRow::Q8K(blocks) => 256 * blocks.len(),
        }
    }

    /// Where the row is in memory, and its bytes.
    pub(in crate::kernels) fn place(&self) -> (*const u8, usize) {
        match self {
            ActRow::F32(values) => (values.as_ptr().cast(), size_of_val(*values)),
            ActRow::Q8(blocks) => (blocks.as_ptr().cast(), size_of_val(*blocks)),
            ActRow::Q8K(blocks) => (blocks.as_ptr().cast(), size_of_val(*blocks)),
        }
    }

    /// The format of the row's blocks.
    #[must_use]
    pub fn format(&self) -> ActivationFormat {
        match self {
            ActRow::F32(_) => ActivationFormat::F32,
            ActRow::Q8(_) => ActivationFormat::Q8,
            ActRow::Q8K(_) => ActivationFormat::Q8K,
        }
    }
}

/// Rows of activations in one format. Refilled without allocating once its buffers have grown to
/// the largest batch.
#[derive(Clone, Debug)]
pub struct Activations {
    format: ActivationFormat,
    rows: usize,
    cols: usize,
    f32: Vec<f32>,
    q8: Vec<BlockQ8>,
    /// The same of two rows or more, laid out for GEMM: groups of rows, in each block by block.
    packed: Vec<PackedBlock>,
    /// The same of one row, laid out for GEMV.
    sixteens: Vec<SixteenBlocks>,
    q8_k: Vec<BlockQ8K>,
}

impl Default for Activations {
    fn default() -> Self {
        Self::new()
    }
}

impl Activations {
    /// No rows.
    #[must_use]
    pub fn new() -> Self {
        Self {
            format: ActivationFormat::F32,
            rows: 0,
            cols: 0,
            f32: Vec::new(),
            q8: Vec::new(),
            packed: Vec::new(),
            sixteens: Vec::new(),
            q8_k: Vec::new(),
        }
    }

    /// Replaces the content by `values`, rows of `cols`, each rounded to `format` on its own.
    ///
    /// # Panics
    /// `values` are not whole rows, or `cols` are not whole blocks of the format (32 for Q8, 256
    /// for Q8_K).
    pub fn set(&mut self, format: ActivationFormat, cols: usize, values: &[f32]) {
        self.fill(format, cols, values, quantize_q8, quantize_q8_k);
    }

    /// As [`Activations::set`], where `q8` and `q8_k` round values to blocks.
    ///
    /// # Panics
    /// As [`Activations::set`].
    pub(in crate::kernels) fn fill(
        &mut self,
        format: ActivationFormat,
        cols: usize,
        values: &[f32],
        q8: impl Fn(&[f32], &mut [BlockQ8]) + Sync,
        q8_k: impl Fn(&[f32], &mut [BlockQ8K]) + Sync,
    ) {
        assert!(
            values.is_empty() || cols > 0 && values.len().is_multiple_of(cols),
            "{} values are not whole rows of {cols}",
            values.len()
        );
        self.format = format;
        self.cols = cols;
        self.rows = values.len().checked_div(cols).unwrap_or(0);
        match format {
            ActivationFormat::F32 => {
                self.f32.clear();
                self.f32.extend_from_slice(values);
            }
            ActivationFormat::Q8 => {
                assert!(cols.is_multiple_of(32), "{cols} columns in blocks of 32");
                self.q8.resize(values.len() / 32, BlockQ8::ZERO);
                quantize_in_parallel(values, &mut self.q8, 32, q8);
                self.lay_out();
            }
            ActivationFormat::Q8K => {
                assert!(cols.is_multiple_of(256), "{cols} columns in blocks of 256");
                self.q8_k.resize(values.len() / 256, BlockQ8K::ZERO);
                quantize_in_parallel(values, &mut self.q8_k, 256, q8_k);
            }
        }
    }

    /// Lays Q8 blocks out for the loops of Q8_0: for GEMV if they are one row, else for GEMM.
    fn lay_out(&mut self) {
        let (rows, blocks) = (self.rows, self.cols / 32);
        if rows < 2 {
            SixteenBlocks::lay_out(&self.q8, &mut self.sixteens);
            return;
        }
        self.packed.resize(rows * blocks, PackedBlock::ZERO);
        let q8 = &self.q8;
        let groups = self.packed.par_chunks_mut(Q8_0_TOKENS * blocks);
        groups.enumerate().for_each(|(g, packed)| {
            let tokens = packed.len() / blocks;
            let first = g * Q8_0_TOKENS * blocks;
            packed
                .par_chunks_mut(tokens)
                .with_min_len(PACKED_AT_ONCE)
                .enumerate()
                .for_each(|(b, packed)| {
                    for (t, to) in packed.iter_mut().enumerate() {
                        *to = PackedBlock::new(&q8[first + t * blocks + b]);
                    }
                });
        });
    }

    /// Group `g` of [`Q8_0_TOKENS`] rows, of which the columns `columns`; `None` unless these are
    /// two or more rows of Q8.
    pub(in crate::kernels) fn group(
        &self,
        g: usize,
        columns: Range<usize>,
    ) -> Option<TokenGroup<'_>> {
        if self.format != ActivationFormat::Q8 || self.rows < 2 {
            return None;
        }
        let blocks = self.cols / 32;
        let first = g * Q8_0_TOKENS;
        let tokens = Q8_0_TOKENS.min(self.rows.checked_sub(first)?);
        let group = &self.packed[first * blocks..][..tokens * blocks];
        Some(TokenGroup {
            blocks: &group[columns.start / 32 * tokens..columns.end / 32 * tokens],
            tokens,
        })
    }

    /// Whether every run of `width` columns is laid out for the loops of its format: one row of Q8
    /// can be cut between its sixteens of blocks alone.
    pub(in crate::kernels) fn is_laid_out(&self, width: usize) -> bool {
        let sixteens = self.format == ActivationFormat::Q8 && self.rows == 1;
        !sixteens || width == self.cols || width.is_multiple_of(SIXTEEN_COLUMNS)
    }

    /// The columns `columns` of one row of Q8.
    ///
    /// # Panics
    /// These are not one row of Q8, or it cannot be cut there.
    pub(in crate::kernels) fn sixteens(&self, columns: Range<usize>) -> &[SixteenBlocks] {
        assert!(
            self.format == ActivationFormat::Q8
                && self.rows == 1
                && columns.start.is_multiple_of(SIXTEEN_COLUMNS)
                && (columns.end.is_multiple_of(SIXTEEN_COLUMNS) || columns.end == self.cols),
            "columns {columns:?} of one row of Q8"
        );
        &self.sixteens[columns.start / SIXTEEN_COLUMNS..columns.end.div_ceil(SIXTEEN_COLUMNS)]
    }

    /// Room for `rows` of `cols` plain values, one row after the other, which the caller fills.
    pub fn plain_mut(&mut self, rows: usize, cols: usize) -> &mut [f32] {
        self.format = ActivationFormat::F32;
        self.rows = rows;
        self.cols = cols;
        self.f32.resize(rows * cols, 0.0);
        &mut self.f32
    }

    /// The values of plain rows, one after the other; empty in other formats.
    #[must_use]
    pub fn plain(&self) -> &[f32] {
        match self.format {
            ActivationFormat::F32 => &self.f32,
            ActivationFormat::Q8 | ActivationFormat::Q8K => &[],
        }
    }

    /// Rows, one a token.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of a row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The format of all rows.
    #[must_use]
    pub fn format(&self) -> ActivationFormat {
        self.format
    }

    /// Row `i`.
    ///
    /// # Panics
    /// `i` is not a row.
    #[must_use]
    pub fn row(&self, i: usize) -> ActRow<'_> {
        self.part(i, 0..self.cols)
    }

    /// The columns `columns` of row `i`, which start and end on a block.
    ///
    /// # Panics
    /// `i` is not a row, or `columns` are not within it.
    pub(in crate::kernels) fn part(&self, i: usize, columns: Range<usize>) -> ActRow<'_> {
        assert!(i < self.rows, "activation row {i} of {}", self.rows);
        match self.format {
            ActivationFormat::F32 => ActRow::F32(nth(&self.f32, i, self.cols, columns, 1)),
            ActivationFormat::Q8 => ActRow::Q8(nth(&self.q8, i, self.cols, columns, 32)),
            ActivationFormat::Q8K => ActRow::Q8K(nth(&self.q8_k, i, self.cols, columns, 256)),
        }
    }
}

/// Some columns of row `i` of `all`, in blocks of `block`.
fn nth<T>(all: &[T], i: usize, cols: usize, columns: Range<usize>, block: usize) -> &[T] {
    &all[i * (cols / block)..][..cols / block][columns.start / block..columns.end / block]
}

/// Each block depends on its own values only, so cutting anywhere gives the same blocks.
fn quantize_in_parallel<B: Send>(
    values: &[f32],
    blocks: &mut [B],
    block: usize,
    quantize: impl Fn(&[f32], &mut [B]) + Sync,
) {
    if values.len() < PARALLEL_VALUES {
        return quantize(values, blocks);
    }
    let part = PARALLEL_VALUES / 4;
    blocks
        .par_chunks_mut(part / block)
        .zip(values.par_chunks(part))
        .for_each(|(blocks, values)| quantize(values, blocks));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_quantised_on_their_own_and_buffers_are_reused() {
        let values: Vec<f32> = (0..512 * 200)
            .map(|i| ((i * 37 % 1009) as f32) - 500.0)
            .collect();
        let mut acts = Activations::new();
        acts.set(ActivationFormat::Q8K, 512, &values);
        assert_eq!(
            (acts.rows(), acts.cols(), acts.format()),
            (200, 512, ActivationFormat::Q8K)
        );
        let mut alone = [BlockQ8K::ZERO; 2];
        quantize_q8_k(&values[512 * 150..512 * 151], &mut alone);
        let ActRow::Q8K(row) = acts.row(150) else {
            panic!("another format")
        };
        assert_eq!(row, alone);
        acts.set(ActivationFormat::Q8, 64, &values[..128]);
        assert_eq!((acts.rows(), acts.row(1).cols()), (2, 64));
        acts.set(ActivationFormat::F32, 3, &values[..9]);
        assert!(matches!(acts.row(2), ActRow::F32(v) if v == &values[6..9]));
        acts.set(ActivationFormat::F32, 3, &[]);
        assert_eq!(acts.rows(), 0);
    }
}
