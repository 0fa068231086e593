//! What one rectangle of tiles computes for one batch, worked out before any weight is read:
//! which tokens each expert computes, and in which order contributions are added.

use std::ops::Range;

use super::ExpertBatch;
use crate::tiles::{Grid, Span, Subtree, TileRect, fold_axis};

/// A token at an expert that it chose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    pub(super) token: u32,
    pub(super) expert: u32,
    pub(super) weight: f32,
}

/// The pairs of one expert, and the sums that their contributions make possible.
#[derive(Clone, Debug)]
pub(super) struct PairGroup {
    pub(super) expert: u32,
    pub(super) pairs: Range<usize>,
    /// In [`Schedule::steps`].
    pub(super) steps: Range<usize>,
}

/// What becomes of a contribution, or of a sum of contributions, in one of [`Schedule::slots`]
/// places.
#[derive(Clone, Copy, Debug)]
pub(super) enum SumStep {
    /// A pair's contribution waits in a slot.
    Keep { pair: usize, slot: usize },
    /// A pair's contribution is added to what waits in a slot.
    Add { pair: usize, slot: usize },
    /// What waits in one slot is added to what waits in another; `from` is free then.
    Merge { from: usize, into: usize },
}

/// One row that is returned: a token's sum over one subtree.
#[derive(Clone, Debug)]
pub(super) struct OutputRow {
    pub(super) blocks: Span,
    /// The slot of the sum over experts, once all steps are done.
    pub(super) slot: usize,
    /// Adds of blocks, `(into, from)`, in [`Schedule::block_adds`], relative to `blocks.start`.
    pub(super) block_adds: Range<usize>,
}

/// Sums follow the canonical tree, but each add is made as soon as both sides are there, so that
/// few contributions wait at any time.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// Ordered by expert, then token, then slot.
    pub(super) pairs: Vec<Pair>,
    pub(super) groups: Vec<PairGroup>,
    pub(super) steps: Vec<SumStep>,
    /// Most contributions or sums that wait at the same time.
    pub(super) slots: usize,
    pub(super) rows: Vec<OutputRow>,
    pub(super) block_adds: Vec<(usize, usize)>,
    /// Pairs ordered by token, then expert, and where each token's begin.
    by_token: Vec<usize>,
    token_starts: Vec<usize>,
    positions: Vec<u32>,
    /// Adds of pairs, `(into, from)`, and which of them a pair makes due once it is computed.
    expert_adds: Vec<(usize, usize)>,
    due: Vec<Range<usize>>,
    /// For each pair, the last pair in its sum so far.
    last_inside: Vec<usize>,
    slot_of: Vec<usize>,
    free: Vec<usize>,
}

impl Schedule {
    pub(super) fn plan(&mut self, rect: TileRect, batch: &ExpertBatch) {
        let grid = batch.shape().grid;
        self.collect_pairs(rect.experts, batch);
        self.group_pairs();
        self.sort_by_token(batch.tokens);
        let subtrees = rect.subtrees(grid);
        // The subtrees of one block span the same experts as those of the next.
        let block = subtrees.first().map(|s| s.blocks);
        let of_a_block = subtrees.iter().filter(|s| Some(s.blocks) == block);
        self.plan_adds(grid, of_a_block.map(|s| s.experts), batch.tokens);
        self.assign_slots();
        self.rows.clear();
        self.block_adds.clear();
        for subtree in subtrees {
            self.plan_rows(grid, subtree, batch);
        }
    }

    /// The rows of one subtree, in the order in which they are returned.
    fn plan_rows(&mut self, grid: Grid, subtree: Subtree, batch: &ExpertBatch) {
        let block_adds = self.fold_blocks(grid, subtree.blocks);
        for token in batch.rows_of(0..batch.tokens, subtree) {
            // The subtree lies inside of the rectangle, so the token has a pair there.
            let first = self.by_token[self.pairs_inside(token, subtree.experts).start];
            self.rows.push(OutputRow {
                blocks: subtree.blocks,
                slot: self.slot_of[first],
                block_adds: block_adds.clone(),
            });
        }
    }

    /// Every token's adds over each span of experts, by the pair that makes them due.
    fn plan_adds(&mut self, grid: Grid, spans: impl Iterator<Item = Span>, tokens: usize) {
        self.expert_adds.clear();
        self.due.clear();
        self.due.resize(self.pairs.len(), 0..0);
        self.last_inside.clear();
        self.last_inside.extend(0..self.pairs.len());
        for span in spans {
            for token in 0..tokens {
                self.fold_experts(grid, self.pairs_inside(token, span));
            }
        }
    }

    fn fold_experts(&mut self, grid: Grid, pairs: Range<usize>) {
        let Schedule {
            pairs: all,
            by_token,
            positions,
            expert_adds,
            due,
            last_inside,
            ..
        } = self;
        let inside = &by_token[pairs];
        positions.clear();
        positions.extend(inside.iter().map(|&p| all[p].expert));
        // The tree is walked so that the pairs that make adds due ascend.
        fold_axis(grid.experts, positions, &mut |into, from| {
            let (into, from) = (inside[into], inside[from]);
            let last = last_inside[from];
            last_inside[into] = last;
            let at = expert_adds.len();
            if due[last].is_empty() {
                due[last] = at..at;
            }
            due[last].end = at + 1;
            expert_adds.push((into, from));
        });
    }

    /// Goes through the pairs in the order in which they are computed.
    fn assign_slots(&mut self) {
        let Schedule {
            groups,
            steps,
            slots,
            expert_adds,
            due,
            slot_of,
            free,
            ..
        } = self;
        steps.clear();
        free.clear();
        slot_of.clear();
        slot_of.resize(due.len(), usize::MAX);
        *slots = 0;
        for group in groups {
            let start = steps.len();
            for pair in group.pairs.clone() {
                let adds = &expert_adds[due[pair].clone()];
                if adds.is_empty() {
                    let slot = free.pop().unwrap_or_else(|| {
                        *slots += 1;
                        *slots - 1
                    });
                    slot_of[pair] = slot;
                    steps.push(SumStep::Keep { pair, slot });
                }
                for &(into, from) in adds {
                    let slot = slot_of[into];
                    if from == pair {
                        steps.push(SumStep::Add { pair, slot });
                    } else {
                        let from = slot_of[from];
                        steps.push(SumStep::Merge { from, into: slot });
                        free.push(from);
                    }
                }
            }
            group.steps = start..steps.len();
        }
    }

    fn collect_pairs(&mut self, experts: Span, batch: &ExpertBatch) {
        self.pairs.clear();
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
        // Stable: slots of a token that name one expert twice stay in order.
        self.pairs.sort_by_key(|p| p.expert);
    }

    fn group_pairs(&mut self) {
        self.groups.clear();
        let mut start = 0;
        for same in self.pairs.chunk_by(|a, b| a.expert == b.expert) {
            let end = start + same.len();
            self.groups.push(PairGroup {
                expert: same[0].expert,
                pairs: start..end,
                steps: 0..0,
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

    fn fold_blocks(&mut self, grid: Grid, blocks: Span) -> Range<usize> {
        let Schedule {
            positions,
            block_adds,
            ..
        } = self;
        let start = block_adds.len();
        positions.clear();
        positions.extend(blocks.start..blocks.end);
        fold_axis(grid.blocks, positions, &mut |into, from| {
            block_adds.push((into, from));
        });
        start..block_adds.len()
    }
}
