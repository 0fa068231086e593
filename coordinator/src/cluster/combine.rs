//! Adds the rows that nodes and this process return into the sum of each token's experts, in the
//! order of the canonical tree.

use std::ops::Range;

use bytes::Bytes;
use ds4_common::expert::ExpertBatch;
use ds4_common::math::add_row_within;
use ds4_common::tiles::{Grid, Reduction, TileError, TileRect};
use ds4_proto::wire::floats_from_bytes;
use rayon::prelude::*;

/// Rows of one share of a layer, in whatever form they arrived.
pub(super) trait RowSource: Sync {
    /// Copies row number `row`; every row has `out.len()` floats.
    fn read(&self, row: usize, out: &mut [f32]);
}

impl RowSource for Vec<f32> {
    fn read(&self, row: usize, out: &mut [f32]) {
        let width = out.len();
        out.copy_from_slice(&self[row * width..(row + 1) * width]);
    }
}

impl RowSource for Bytes {
    fn read(&self, row: usize, out: &mut [f32]) {
        let width = size_of_val(out);
        floats_from_bytes(&self[row * width..(row + 1) * width], out);
    }
}

/// The rows of some tiles (`rows x hidden`), from a node or from this process.
#[derive(Clone, Debug)]
pub(super) enum ReplyRows {
    /// Little-endian floats, as a node sent them.
    Wire(Bytes),
    /// Computed by the local fallback.
    Local(Vec<f32>),
}

impl RowSource for ReplyRows {
    fn read(&self, row: usize, out: &mut [f32]) {
        match self {
            ReplyRows::Wire(bytes) => bytes.read(row, out),
            ReplyRows::Local(floats) => floats.read(row, out),
        }
    }
}

/// An exact cover of the grid by shares, each computed in one place, and how their rows are added.
#[derive(Clone, Debug)]
pub(super) struct Cover {
    /// Over the subtrees of all shares, share by share.
    reduction: Reduction,
    /// Each share's range within the reduction's subtrees.
    subtrees: Vec<Range<usize>>,
}

/// Marks a token that has no row for a subtree.
const NO_ROW: u32 = u32::MAX;

/// Where each (subtree, token) finds its row among the rows of the subtree's share.
#[derive(Debug)]
pub(super) struct RowMap {
    tokens: usize,
    /// `subtrees x tokens`: a row's number within its share, or [`NO_ROW`].
    row: Vec<u32>,
    /// Number of rows of each share.
    pub(super) rows: Vec<usize>,
}

impl Cover {
    /// A cover by `shares`, each given as its rectangles.
    ///
    /// # Errors
    /// The rectangles overlap or leave tiles of the grid uncovered.
    pub(super) fn new<'a>(
        grid: Grid,
        shares: impl Iterator<Item = &'a [TileRect]>,
    ) -> Result<Self, TileError> {
        let mut all = Vec::new();
        let mut subtrees = Vec::new();
        for rects in shares {
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

    /// Numbers the rows of the tokens in `tokens`: share by share, subtree by subtree, tokens
    /// ascending.
    pub(super) fn row_map(&self, batch: &ExpertBatch, tokens: Range<usize>) -> RowMap {
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

    /// Writes each token's sum over all shares to `out` (`tokens x hidden`), on the current rayon
    /// pool. `replies` are the shares' rows, as many as `map` counts and `hidden` floats wide; a
    /// share without rows is not read.
    pub(super) fn combine<R: RowSource>(
        &self,
        map: &RowMap,
        replies: &[R],
        hidden: usize,
        out: &mut [f32],
    ) {
        let trees = self.reduction.subtrees().len();
        let share_of = |tree: usize| self.subtrees.partition_point(|range| range.end <= tree);
        let read = |tree: usize, token: usize, row: &mut [f32]| {
            replies[share_of(tree)].read(map.row[tree * map.tokens + token] as usize, row);
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
