//! What one rectangle of tiles computes for one batch, worked out before any weight is read:
//! which tokens meet which expert, and in which order contributions are added.

use std::ops::Range;

use super::ExpertBatch;
use crate::tiles::{Grid, Span, TileRect, fold_axis};

/// A token at an expert that it chose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    pub(super) token: u32,
    pub(super) expert: u32,
    pub(super) weight: f32,
}

/// The pairs of one expert.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) expert: u32,
    pub(super) pairs: Range<usize>,
}

/// One row that the holder returns: a token's sum over one subtree.
#[derive(Clone, Debug)]
pub(super) struct OutputRow {
    pub(super) blocks: Span,
    /// The pair whose contribution ends as the sum over experts.
    pub(super) root: usize,
    /// Adds of pairs, `(into, from)`, in [`Schedule::adds`], the same for every block.
    pub(super) expert_adds: Range<usize>,
    /// Adds of blocks, relative to `blocks.start`.
    pub(super) block_adds: Range<usize>,
}

#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// Ordered by expert, then token, then slot.
    pub(super) pairs: Vec<Pair>,
    pub(super) groups: Vec<Group>,
    pub(super) rows: Vec<OutputRow>,
    pub(super) adds: Vec<(usize, usize)>,
    /// Pairs ordered by token, then expert, and where each token's begin.
    by_token: Vec<usize>,
    token_starts: Vec<usize>,
    positions: Vec<u32>,
}

impl Schedule {
    pub(super) fn plan(&mut self, grid: Grid, rect: TileRect, batch: &ExpertBatch) {
        self.pairs.clear();
        self.groups.clear();
        self.rows.clear();
        self.adds.clear();
        self.collect_pairs(rect.experts, batch);
        self.group_pairs();
        self.sort_by_token(batch.tokens);
        for subtree in rect.subtrees(grid) {
            let block_adds = self.fold_blocks(grid, subtree.blocks);
            for token in 0..batch.tokens {
                let pairs = self.pairs_inside(token, subtree.experts);
                let Some(&first) = self.by_token[pairs.clone()].first() else {
                    continue;
                };
                self.rows.push(OutputRow {
                    blocks: subtree.blocks,
                    root: first,
                    expert_adds: self.fold_experts(grid, pairs),
                    block_adds: block_adds.clone(),
                });
            }
        }
    }

    fn collect_pairs(&mut self, experts: Span, batch: &ExpertBatch) {
        for token in 0..batch.tokens {
            for route in batch.routes_of(token) {
                if experts.contains(route.expert) {
                    self.pairs.push(Pair {
                        token: token as u32,
                        expert: route.expert,
                        weight: route.weight,
                    });
                }
            }
        }
        // Stable: a token's slots stay in order at an expert that it names twice.
        self.pairs.sort_by_key(|p| p.expert);
    }

    fn group_pairs(&mut self) {
        let mut start = 0;
        for same in self.pairs.chunk_by(|a, b| a.expert == b.expert) {
            let end = start + same.len();
            self.groups.push(Group {
                expert: same[0].expert,
                pairs: start..end,
            });
            start = end;
        }
    }

    fn sort_by_token(&mut self, tokens: usize) {
        self.by_token.clear();
        self.by_token.extend(0..self.pairs.len());
        // Stable: a token's pairs stay ascending by expert.
        self.by_token.sort_by_key(|&p| self.pairs[p].token);
        self.token_starts.clear();
        let starts = |token: usize| {
            self.by_token
                .partition_point(|&p| (self.pairs[p].token as usize) < token)
        };
        self.token_starts.extend((0..=tokens).map(starts));
    }

    /// The part of `by_token` that holds a token's pairs at `experts`.
    fn pairs_inside(&self, token: usize, experts: Span) -> Range<usize> {
        let (start, end) = (self.token_starts[token], self.token_starts[token + 1]);
        let before = |bound: u32| {
            start + self.by_token[start..end].partition_point(|&p| self.pairs[p].expert < bound)
        };
        before(experts.start)..before(experts.end)
    }

    fn fold_experts(&mut self, grid: Grid, pairs: Range<usize>) -> Range<usize> {
        let Schedule {
            pairs: all,
            by_token,
            positions,
            adds,
            ..
        } = self;
        let inside = &by_token[pairs];
        let start = adds.len();
        positions.clear();
        positions.extend(inside.iter().map(|&p| all[p].expert));
        fold_axis(grid.experts, positions, &mut |into, from| {
            adds.push((inside[into], inside[from]))
        });
        start..adds.len()
    }

    fn fold_blocks(&mut self, grid: Grid, blocks: Span) -> Range<usize> {
        let Schedule {
            positions, adds, ..
        } = self;
        let start = adds.len();
        positions.clear();
        positions.extend(blocks.start..blocks.end);
        fold_axis(grid.blocks, positions, &mut |into, from| {
            adds.push((into, from))
        });
        start..adds.len()
    }
}
