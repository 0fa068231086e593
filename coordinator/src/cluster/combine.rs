//! From the holders' rows to the sum of a token's experts, in tree order.

use std::ops::Range;

use bytes::Bytes;
use ds4_common::expert::ExpertBatch;
use ds4_common::math::add_row_within;
use ds4_common::tiles::{Grid, Reduction, TileError, TileRect};
use ds4_proto::wire::floats_from_bytes;
use rayon::prelude::*;

/// Rows of a holder, wherever they lie.
pub(super) trait Rows: Sync {
    /// Copies row `row` of rows that are `out.len()` wide.
    fn read(&self, row: usize, out: &mut [f32]);
}

impl Rows for Vec<f32> {
    fn read(&self, row: usize, out: &mut [f32]) {
        let width = out.len();
        out.copy_from_slice(&self[row * width..(row + 1) * width]);
    }
}

impl Rows for Bytes {
    fn read(&self, row: usize, out: &mut [f32]) {
        let width = size_of_val(out);
        floats_from_bytes(&self[row * width..(row + 1) * width], out);
    }
}

/// Rows of a part of a layer, from a node or from this process.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    Wire(Bytes),
    Own(Vec<f32>),
}

impl Rows for Reply {
    fn read(&self, row: usize, out: &mut [f32]) {
        match self {
            Reply::Wire(bytes) => bytes.read(row, out),
            Reply::Own(floats) => floats.read(row, out),
        }
    }
}

/// Who holds what, as an exact cover of the grid, and how the parts are added.
#[derive(Clone, Debug)]
pub(super) struct Cover {
    /// Of all holders' subtrees, holder by holder.
    reduction: Reduction,
    /// Each holder's subtrees within the reduction's.
    subtrees: Vec<Range<usize>>,
}

/// Marks a token that has no row for a subtree.
const NO_ROW: u32 = u32::MAX;

/// Where each (token, subtree) finds its row in the reply of the subtree's holder.
#[derive(Debug)]
pub(super) struct RowMap {
    tokens: usize,
    /// `subtrees x tokens`.
    row: Vec<u32>,
    /// Rows that each holder returns.
    pub(super) rows: Vec<usize>,
}

impl Cover {
    /// # Errors
    /// The holders' tiles are no exact cover of the grid.
    pub(super) fn new<'a>(
        grid: Grid,
        holders: impl Iterator<Item = &'a [TileRect]>,
    ) -> Result<Self, TileError> {
        let mut all = Vec::new();
        let mut subtrees = Vec::new();
        for rects in holders {
            let start = all.len();
            all.extend(rects.iter().flat_map(|rect| rect.subtrees(grid)));
            subtrees.push(start..all.len());
        }
        let reduction = Reduction::new(grid, all)?;
        Ok(Cover {
            reduction,
            subtrees,
        })
    }

    /// The rows of the tokens in `tokens`: holder by holder, subtree by subtree, tokens ascending.
    pub(super) fn rows(&self, batch: &ExpertBatch, tokens: Range<usize>) -> RowMap {
        let all = self.reduction.subtrees();
        let mut row = vec![NO_ROW; all.len() * tokens.len()];
        let mut rows = Vec::with_capacity(self.subtrees.len());
        for subtrees in &self.subtrees {
            let mut next = 0;
            for tree in subtrees.clone() {
                for token in batch.rows_of(tokens.clone(), all[tree]) {
                    row[tree * tokens.len() + token - tokens.start] = next;
                    next += 1;
                }
            }
            rows.push(next as usize);
        }
        RowMap {
            tokens: tokens.len(),
            row,
            rows,
        }
    }

    /// Adds the holders' `replies` into `out` (tokens x hidden) on the current rayon pool. Each
    /// reply has the rows that `map` counts, `hidden` floats each; one without rows is not read.
    pub(super) fn combine<R: Rows>(
        &self,
        map: &RowMap,
        replies: &[R],
        hidden: usize,
        out: &mut [f32],
    ) {
        let trees = self.reduction.subtrees().len();
        let holder_of = |tree: usize| self.subtrees.partition_point(|range| range.end <= tree);
        let read = |tree: usize, token: usize, row: &mut [f32]| {
            replies[holder_of(tree)].read(map.row[tree * map.tokens + token] as usize, row);
        };
        out.par_chunks_mut(hidden).enumerate().for_each_init(
            Vec::new,
            |sums: &mut Vec<f32>, (token, out)| {
                let has = |tree: usize| map.row[tree * map.tokens + token] != NO_ROW;
                let mut present = (0..trees).filter(|&tree| has(tree));
                match (present.next(), present.next()) {
                    (None, _) => return out.fill(0.0),
                    (Some(only), None) => return read(only, token, out),
                    (Some(_), Some(_)) => {}
                }
                sums.resize(trees * hidden, 0.0);
                for tree in (0..trees).filter(|&tree| has(tree)) {
                    read(tree, token, &mut sums[tree * hidden..(tree + 1) * hidden]);
                }
                let root = self.reduction.fold(has, |into, from| {
                    add_row_within(sums, into * hidden, from * hidden, hidden);
                });
                let root = root.unwrap_or_default() * hidden;
                out.copy_from_slice(&sums[root..root + hidden]);
            },
        );
    }
}
