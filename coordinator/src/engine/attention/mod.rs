//! Attention over a window of recent rows and the compressed rows of all that came before.
//!
//! One latent row per token serves as key and value of every head. Values carry the rotation of
//! their position, so it is undone on the heads' outputs.

mod compressor;
mod indexer;
mod pool;
mod softmax;

use ds4_common::math::{rms_norm, rms_scale, round_e4m3_blocks};
use ds4_common::model::HyperParams;
use rayon::prelude::*;

use super::batch::{Batch, Ropes};
use super::dense::DenseOps;
use super::error::EngineError;
use super::kv_cache::LayerCache;
use super::operand::Operand;
use super::rope::rotate;
use super::stage::Stage;
use super::weights::AttentionWeights;

use compressor::{CompressorScratch, RowRounding};
use indexer::IndexerScratch;

/// What one layer's attention reads, apart from caches and scratch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionLayer<'a> {
    pub(crate) hp: &'a HyperParams,
    pub(crate) dense: DenseOps,
    pub(crate) ropes: &'a Ropes,
    pub(crate) weights: &'a AttentionWeights,
    /// Tokens per compressed row; 0 on layers that attend to the window alone.
    pub(crate) ratio: usize,
}

/// Buffers reused by all layers and steps; sizes are those of the largest batch so far.
#[derive(Debug, Default)]
pub(crate) struct AttentionScratch {
    /// Query latent before its norm, `(rows x q_rank)`.
    query_input: Vec<f32>,
    /// Query latent after its norm, `(rows x q_rank)`.
    query_latent: Operand,
    /// `(rows x heads x head_dim)`.
    queries: Vec<f32>,
    /// Keys before norm and rotation, `(rows x head_dim)`.
    key_input: Vec<f32>,
    /// `(rows x head_dim)`.
    keys: Vec<f32>,
    compressor: CompressorScratch,
    index_compressor: CompressorScratch,
    indexer: IndexerScratch,
    /// Outputs of all heads, `(rows x heads x head_dim)`.
    heads: Operand,
    /// `(rows x out_groups x out_rank)`.
    low_rank: Operand,
}

/// Fewest heads that one task norms and rotates.
const HEADS_AT_ONCE: usize = 8;

impl AttentionLayer<'_> {
    fn compressing(&self) -> bool {
        self.ratio != 0
    }

    /// Writes the attention of every row of `x` (normed, `(rows x hidden)`) to `out`
    /// `(rows x hidden)` and appends the rows' keys to `caches`, one cache for each chunk of
    /// `batch`. Calls `lap` after each stage.
    pub(crate) fn forward(
        &self,
        batch: &Batch,
        caches: &mut [&mut LayerCache],
        x: &mut Operand,
        scratch: &mut AttentionScratch,
        out: &mut Vec<f32>,
        lap: &mut dyn FnMut(Stage),
    ) -> Result<(), EngineError> {
        self.project_in(batch, x, scratch)?;
        lap(Stage::AttentionInput);
        self.queries(batch, scratch)?;
        self.store_keys(batch, caches, scratch);
        lap(Stage::Queries);
        self.compress(batch, caches, scratch);
        lap(Stage::Compressor);
        indexer::select(self, batch, caches, &mut scratch.indexer);
        lap(Stage::Indexer);
        let shared: Vec<&LayerCache> = caches.iter().map(|c| &**c).collect();
        let width = self.hp.heads * self.hp.head_dim;
        softmax::attend(
            self,
            batch,
            &shared,
            &scratch.queries,
            scratch.indexer.selection(),
            scratch.heads.values_mut(width, batch.rows()),
        );
        for cache in caches {
            cache.window.trim();
        }
        lap(Stage::Attention);
        self.project_out(batch.rows(), scratch, out)?;
        lap(Stage::AttentionOutput);
        Ok(())
    }

    /// All products of the layer's input.
    fn project_in(
        &self,
        batch: &Batch,
        x: &mut Operand,
        scratch: &mut AttentionScratch,
    ) -> Result<(), EngineError> {
        let w = self.weights;
        let mut jobs = vec![
            (&w.q_a, &mut scratch.query_input),
            (&w.kv, &mut scratch.key_input),
        ];
        if let Some(weights) = &w.compressor {
            jobs.extend(scratch.compressor.projections(weights));
        }
        scratch.indexer.start(self, batch);
        if let Some(weights) = &w.indexer {
            jobs.extend(scratch.index_compressor.projections(&weights.compressor));
            jobs.extend(scratch.indexer.input_projection(weights));
        }
        self.dense.linears(x, jobs)
    }

    /// Low-rank queries, each head normed without weight and rotated, and the indexer's.
    fn queries(&self, batch: &Batch, scratch: &mut AttentionScratch) -> Result<(), EngineError> {
        let (w, hp) = (self.weights, self.hp);
        let kernels = self.dense.kernels;
        scratch
            .query_latent
            .values_mut(hp.q_rank, batch.rows())
            .par_chunks_mut(hp.q_rank)
            .zip(scratch.query_input.par_chunks(hp.q_rank))
            .for_each(|(row, latent)| {
                kernels.vectorised(|| rms_norm(latent, &w.q_a_norm, hp.rms_eps, row));
            });
        let mut jobs = vec![(&w.q_b, &mut scratch.queries)];
        if let Some(weights) = &w.indexer {
            jobs.extend(scratch.indexer.query_projection(weights));
        }
        self.dense.linears(&mut scratch.query_latent, jobs)?;
        scratch
            .queries
            .par_chunks_mut(hp.head_dim)
            .with_min_len(HEADS_AT_ONCE)
            .enumerate()
            .for_each(|(i, head)| {
                let angles = batch.angles(i / hp.heads, self.compressing());
                kernels.vectorised(|| {
                    let scale = rms_scale(head, hp.rms_eps);
                    head.iter_mut().for_each(|v| *v *= scale);
                    rotate(head, angles);
                });
            });
        scratch.indexer.finish_queries(self, batch);
        Ok(())
    }

    /// Normed, rotated and rounded latent rows, pushed to each chunk's window.
    fn store_keys(
        &self,
        batch: &Batch,
        caches: &mut [&mut LayerCache],
        scratch: &mut AttentionScratch,
    ) {
        let (w, hp) = (self.weights, self.hp);
        scratch.keys.resize(batch.rows() * hp.head_dim, 0.0);
        let rows = scratch
            .keys
            .par_chunks_mut(hp.head_dim)
            .zip(scratch.key_input.par_chunks(hp.head_dim))
            .enumerate();
        rows.for_each(|(r, (key, latent))| {
            let angles = batch.angles(r, self.compressing());
            self.dense.kernels.vectorised(|| {
                rms_norm(latent, &w.kv_norm, hp.rms_eps, key);
                rotate(key, angles);
                if self.dense.numerics.rounds_cache() {
                    round_e4m3_blocks(&mut key[..hp.head_dim - hp.rope_dims]);
                }
            });
        });
        for (rows, cache) in batch.chunks.iter().zip(caches) {
            let keys = &scratch.keys[rows.first * hp.head_dim..][..rows.len * hp.head_dim];
            cache.window.extend(keys);
        }
    }

    /// Runs the layer's compressors, so that a token that closes a window sees its entry.
    fn compress(
        &self,
        batch: &Batch,
        caches: &mut [&mut LayerCache],
        scratch: &mut AttentionScratch,
    ) {
        let AttentionScratch {
            compressor: keys,
            index_compressor: index,
            ..
        } = scratch;
        // Only the rows of one sequence depend on each other.
        let compressed: Vec<_> = caches
            .iter_mut()
            .map(|cache| (cache.compressed.as_mut(), cache.index.as_mut()))
            .collect();
        compressed.into_par_iter().zip(&batch.chunks).for_each(
            |((key_target, index_target), &rows)| {
                let push = |scratch: &CompressorScratch, weights, target, rounding| {
                    if let (Some(weights), Some(target)) = (weights, target) {
                        scratch.push(self, weights, batch, rows, target, rounding);
                    }
                };
                let indexer = self.weights.indexer.as_ref().map(|i| &i.compressor);
                let own = self.weights.compressor.as_ref();
                rayon::join(
                    || push(keys, own, key_target, RowRounding::Key),
                    || push(index, indexer, index_target, RowRounding::Index),
                );
            },
        );
    }

    /// Projects each group of heads with its own low-rank matrix, then all groups together.
    fn project_out(
        &self,
        rows: usize,
        scratch: &mut AttentionScratch,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        let (w, groups) = (self.weights, self.hp.out_groups);
        let low_rank = scratch.low_rank.values_mut(w.output_a.rows(), rows);
        self.dense
            .grouped(&w.output_a, groups, &mut scratch.heads, low_rank)?;
        self.dense.linear(&w.output_b, &mut scratch.low_rank, out)
    }
}
