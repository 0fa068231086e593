//! The lightning indexer: chooses the compressed rows that a token attends to once there are more
//! than `index_top_k` of them.

use std::ops::Range;

use ds4_common::kernels::Kernels;
use ds4_common::math::{hadamard, round_fp4_blocks};
use rayon::prelude::*;

use super::{AttentionLayer, HEADS_AT_ONCE};
use crate::engine::batch::Batch;
use crate::engine::kv_cache::{LayerCache, RowStream};
use crate::engine::moe::top_k;
use crate::engine::rope::rotate;
use crate::engine::weights::{IndexerWeights, Linear};

/// Compressed rows scored by one task, and the padding of a token's score row.
const SCORE_SPAN: usize = 256;
/// Keys that a head is multiplied with at once.
const KEYS_AT_ONCE: usize = 32;
/// Tokens scored at once, which bounds the score buffer at long contexts.
const TOKENS_AT_ONCE: usize = 16;

/// Buffers of the indexer, reused by all layers and steps.
#[derive(Debug, Default)]
pub(super) struct IndexerScratch {
    /// `(rows x index_heads x index_dim)`.
    queries: Vec<f32>,
    /// `(rows x index_heads)`.
    head_weights: Vec<f32>,
    /// Scores of compressed rows, `(TOKENS_AT_ONCE x visible)` with padded rows.
    scores: Vec<f32>,
    /// Indices of the chosen compressed rows, ascending, for every row; empty means all.
    chosen: Vec<Vec<u32>>,
    /// Whether any row of the batch sees more compressed rows than it may attend to.
    active: bool,
}

impl IndexerScratch {
    /// Determines whether any row of the batch must choose at all.
    pub(super) fn start(&mut self, layer: &AttentionLayer<'_>, batch: &Batch) {
        self.active = layer.weights.indexer.is_some()
            && (0..batch.rows()).any(|row| visible(layer, batch, row) > layer.hp.index_top_k);
    }

    /// The matrix to multiply with the layer's input, if any, and where the product goes.
    pub(super) fn input_projection<'a>(
        &'a mut self,
        weights: &'a IndexerWeights,
    ) -> Option<(&'a Linear, &'a mut Vec<f32>)> {
        self.active
            .then_some((&weights.head_weights, &mut self.head_weights))
    }

    /// The matrix to multiply with the query latent, if any, and where the product goes.
    pub(super) fn query_projection<'a>(
        &'a mut self,
        weights: &'a IndexerWeights,
    ) -> Option<(&'a Linear, &'a mut Vec<f32>)> {
        self.active.then_some((&weights.query, &mut self.queries))
    }

    /// Rotates, transforms and rounds the projected queries, and scales the heads' weights.
    pub(super) fn finish_queries(&mut self, layer: &AttentionLayer<'_>, batch: &Batch) {
        if !self.active {
            return;
        }
        let hp = layer.hp;
        let scale = 1.0 / ((hp.index_dim * hp.index_heads) as f32).sqrt();
        self.head_weights.iter_mut().for_each(|w| *w *= scale);
        self.queries
            .par_chunks_mut(hp.index_dim)
            .with_min_len(HEADS_AT_ONCE)
            .enumerate()
            .for_each(|(i, head)| {
                let angles = batch.angles(i / hp.index_heads, true);
                layer.dense.kernels.vectorised(|| {
                    rotate(head, angles);
                    if layer.dense.numerics.rounds_cache() {
                        hadamard(head);
                        round_fp4_blocks(head);
                    }
                });
            });
    }

    /// The compressed rows that each batch row attends to, ascending; `None` and an empty list mean
    /// all that are visible to it.
    pub(super) fn selection(&self) -> Option<&[Vec<u32>]> {
        self.active.then_some(&self.chosen)
    }
}

/// Number of compressed rows that a row of the batch sees.
fn visible(layer: &AttentionLayer<'_>, batch: &Batch, row: usize) -> usize {
    (batch.positions[row] + 1) / layer.ratio.max(1)
}

/// Chooses for every row that sees more than `index_top_k` compressed rows.
pub(super) fn select(
    layer: &AttentionLayer<'_>,
    batch: &Batch,
    caches: &[&mut LayerCache],
    scratch: &mut IndexerScratch,
) {
    if !scratch.active {
        return;
    }
    let hp = layer.hp;
    let visible = |row: usize| visible(layer, batch, row);
    scratch
        .chosen
        .resize_with(batch.rows().max(scratch.chosen.len()), Vec::new);
    scratch.chosen.iter_mut().for_each(Vec::clear);
    for (rows, cache) in batch.chunks.iter().zip(caches) {
        let Some(index) = &cache.index else { continue };
        // Later rows see more, so the rows that must choose come last.
        let end = rows.first + rows.len;
        let few = (rows.first..end).take_while(|&row| visible(row) <= hp.index_top_k);
        for start in (rows.first + few.count()..end).step_by(TOKENS_AT_ONCE) {
            let group = start..(start + TOKENS_AT_ONCE).min(end);
            score_group(layer, &index.rows, group, &visible, scratch);
        }
    }
}

/// Scores all visible rows for a few tokens of one sequence and keeps the best.
fn score_group(
    layer: &AttentionLayer<'_>,
    index_keys: &RowStream,
    group: Range<usize>,
    visible: &(impl Fn(usize) -> usize + Sync),
    scratch: &mut IndexerScratch,
) {
    let hp = layer.hp;
    let longest = group.clone().map(visible).max().unwrap_or(0);
    let stride = longest.next_multiple_of(SCORE_SPAN);
    scratch.scores.resize(group.len() * stride, 0.0);
    let width = hp.index_heads * hp.index_dim;
    let (queries, head_weights) = (&scratch.queries, &scratch.head_weights);
    scratch
        .scores
        .par_chunks_mut(SCORE_SPAN)
        .enumerate()
        .for_each_init(Vec::new, |keys, (span, scores)| {
            let row = group.start + span * SCORE_SPAN / stride;
            let first = span * SCORE_SPAN % stride;
            let count = visible(row).saturating_sub(first).min(SCORE_SPAN);
            keys.resize(count * hp.index_dim, 0.0);
            index_keys.read(first, keys);
            let query = &queries[row * width..(row + 1) * width];
            let weights = &head_weights[row * hp.index_heads..(row + 1) * hp.index_heads];
            let heads: Vec<&[f32]> = query.chunks_exact(hp.index_dim).collect();
            let scores = &mut scores[..count];
            score_keys(layer.dense.kernels, &heads, weights, keys, scores);
        });
    let chosen = &mut scratch.chosen[group.clone()];
    chosen
        .par_iter_mut()
        .zip(scratch.scores.par_chunks_exact(stride))
        .enumerate()
        .for_each_init(Vec::new, |order, (i, (chosen, scores))| {
            top_k(&scores[..visible(group.start + i)], hp.index_top_k, order);
            order.sort_unstable();
            chosen.extend_from_slice(order);
        });
}

/// score = Σ over heads of weight · max(0, head · key), heads in order, for a run of keys.
fn score_keys(
    kernels: Kernels,
    heads: &[&[f32]],
    weights: &[f32],
    keys: &[f32],
    scores: &mut [f32],
) {
    let dim = heads.first().map_or(1, |head| head.len());
    let mut dots = vec![0.0; heads.len() * KEYS_AT_ONCE];
    let groups = keys
        .chunks(KEYS_AT_ONCE * dim)
        .zip(scores.chunks_mut(KEYS_AT_ONCE));
    for (keys, scores) in groups {
        let mut rows: [&[f32]; KEYS_AT_ONCE] = [&[]; KEYS_AT_ONCE];
        for (row, key) in rows.iter_mut().zip(keys.chunks_exact(dim)) {
            *row = key;
        }
        kernels.dots_grid(heads, &rows[..scores.len()], &mut dots, KEYS_AT_ONCE);
        kernels.vectorised(|| {
            scores.fill(0.0);
            for (dots, w) in dots.chunks_exact(KEYS_AT_ONCE).zip(weights) {
                for (score, dot) in scores.iter_mut().zip(dots) {
                    *score += w * dot.max(0.0);
                }
            }
        });
    }
}
