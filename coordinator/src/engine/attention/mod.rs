//! Attention over a window of recent rows and the compressed rows of all that came before.
//!
//! One latent row a token serves as key and value of every head. Values carry the rotation of
//! their position, so it is undone on the heads' outputs.

mod compressor;
mod core;
mod indexer;

use ds4_common::math::{rms_norm, rms_scale, round_e4m3_blocks};
use ds4_common::model::HyperParams;
use rayon::prelude::*;

use super::EngineError;
use super::batch::{Batch, Ropes};
use super::compute::Compute;
use super::kv_cache::LayerCache;
use super::operand::Operand;
use super::rope::rotate;
use super::weights::AttentionWeights;

use compressor::{CompressorScratch, RowRounding};
use indexer::IndexerScratch;

/// What one layer's attention works with, besides its scratch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionLayer<'a> {
    pub(crate) hp: &'a HyperParams,
    pub(crate) compute: Compute,
    pub(crate) ropes: &'a Ropes,
    pub(crate) weights: &'a AttentionWeights,
    pub(crate) ratio: usize,
}

/// Buffers reused by all layers and steps; sizes are those of the largest batch so far.
#[derive(Debug, Default)]
pub(crate) struct AttentionScratch {
    latent: Vec<f32>,
    /// Normed query latent, `rows x q_rank`.
    query_latent: Operand,
    /// `rows x heads x head_dim`.
    queries: Vec<f32>,
    /// `rows x head_dim`.
    keys: Vec<f32>,
    compressor: CompressorScratch,
    indexer: IndexerScratch,
    /// `rows x heads x head_dim`.
    heads: Vec<f32>,
    group: Operand,
    group_out: Vec<f32>,
    /// `rows x groups x out_rank`.
    low_rank: Operand,
}

impl AttentionLayer<'_> {
    fn compressing(&self) -> bool {
        self.ratio != 0
    }

    /// Attention of every row in `x` (normed, `rows x hidden`) into `out`; the rows enter the
    /// caches, one cache for each chunk of `batch`.
    pub(crate) fn forward(
        &self,
        batch: &Batch,
        caches: &mut [&mut LayerCache],
        x: &mut Operand,
        scratch: &mut AttentionScratch,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        self.queries(batch, x, scratch)?;
        self.store_keys(batch, caches, x, scratch)?;
        self.compress(batch, caches, x, &mut scratch.compressor)?;
        indexer::select(
            self,
            batch,
            caches,
            x,
            &mut scratch.query_latent,
            &mut scratch.indexer,
        )?;
        let shared: Vec<&LayerCache> = caches.iter().map(|c| &**c).collect();
        scratch.heads.resize(scratch.queries.len(), 0.0);
        core::attend(
            self,
            batch,
            &shared,
            &scratch.queries,
            scratch.indexer.selection(),
            &mut scratch.heads,
        );
        for cache in caches {
            cache.trim_window(self.hp.window);
        }
        self.project_out(batch.rows(), scratch, out)
    }

    /// Low-rank queries, each head normed without weight and rotated.
    fn queries(
        &self,
        batch: &Batch,
        x: &mut Operand,
        scratch: &mut AttentionScratch,
    ) -> Result<(), EngineError> {
        let (w, hp) = (self.weights, self.hp);
        self.compute.linear(&w.q_a, x, &mut scratch.latent)?;
        let normed = scratch.query_latent.values_mut(hp.q_rank, batch.rows());
        for (row, latent) in normed
            .chunks_exact_mut(hp.q_rank)
            .zip(scratch.latent.chunks_exact(hp.q_rank))
        {
            rms_norm(latent, &w.q_a_norm, hp.rms_eps, row);
        }
        self.compute
            .linear(&w.q_b, &mut scratch.query_latent, &mut scratch.queries)?;
        scratch
            .queries
            .par_chunks_mut(hp.heads * hp.head_dim)
            .enumerate()
            .for_each(|(r, row)| {
                for head in row.chunks_exact_mut(hp.head_dim) {
                    let scale = rms_scale(head, hp.rms_eps);
                    head.iter_mut().for_each(|v| *v *= scale);
                    rotate(head, batch.angles(r, self.compressing()));
                }
            });
        Ok(())
    }

    /// Normed, rotated and rounded latent rows, pushed to each chunk's window.
    fn store_keys(
        &self,
        batch: &Batch,
        caches: &mut [&mut LayerCache],
        x: &mut Operand,
        scratch: &mut AttentionScratch,
    ) -> Result<(), EngineError> {
        let (w, hp) = (self.weights, self.hp);
        self.compute.linear(&w.kv, x, &mut scratch.latent)?;
        scratch.keys.resize(batch.rows() * hp.head_dim, 0.0);
        let rows = scratch
            .keys
            .par_chunks_mut(hp.head_dim)
            .zip(scratch.latent.par_chunks(hp.head_dim))
            .enumerate();
        rows.for_each(|(r, (key, latent))| {
            rms_norm(latent, &w.kv_norm, hp.rms_eps, key);
            rotate(key, batch.angles(r, self.compressing()));
            if self.compute.numerics.rounds_cache() {
                round_e4m3_blocks(&mut key[..hp.head_dim - hp.rope_dims]);
            }
        });
        for (rows, cache) in batch.chunks.iter().zip(caches) {
            let keys = &scratch.keys[rows.first * hp.head_dim..][..rows.len * hp.head_dim];
            keys.chunks_exact(hp.head_dim)
                .for_each(|key| cache.window.push(key));
        }
        Ok(())
    }

    /// Runs the layer's compressors, so that a token that closes a window sees its entry.
    fn compress(
        &self,
        batch: &Batch,
        caches: &mut [&mut LayerCache],
        x: &mut Operand,
        scratch: &mut CompressorScratch,
    ) -> Result<(), EngineError> {
        if let Some(weights) = &self.weights.compressor {
            scratch.project(self.compute, weights, x)?;
            let targets = caches.iter_mut().map(|c| c.compressed.as_mut());
            scratch.push(self, weights, batch, targets, RowRounding::Key);
        }
        if let Some(indexer) = &self.weights.indexer {
            scratch.project(self.compute, &indexer.compressor, x)?;
            let targets = caches.iter_mut().map(|c| c.index.as_mut());
            scratch.push(
                self,
                &indexer.compressor,
                batch,
                targets,
                RowRounding::Index,
            );
        }
        Ok(())
    }

    /// Each group of heads through its own low-rank matrix, then all of them together.
    fn project_out(
        &self,
        rows: usize,
        scratch: &mut AttentionScratch,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        let (w, hp) = (self.weights, self.hp);
        let all = hp.heads * hp.head_dim;
        let width = all / hp.out_groups;
        let low_rank = hp.out_groups * hp.out_rank;
        let output_a = w.output_a.matrix()?;
        let format = self.compute.numerics.activation_format(w.output_a.ty());
        scratch.low_rank.values_mut(low_rank, rows);
        scratch.group_out.resize(rows * hp.out_rank, 0.0);
        for g in 0..hp.out_groups {
            let input = scratch.group.values_mut(width, rows);
            let heads = scratch.heads.par_chunks_exact(all);
            input
                .par_chunks_exact_mut(width)
                .zip(heads)
                .for_each(|(to, from)| {
                    to.copy_from_slice(&from[g * width..(g + 1) * width]);
                });
            let strip = output_a.row_range(g * hp.out_rank..(g + 1) * hp.out_rank);
            let input = scratch.group.in_format(format);
            self.compute
                .kernels
                .matmul(&strip, input, &mut scratch.group_out);
            let to = scratch
                .low_rank
                .values_mut(low_rank, rows)
                .chunks_exact_mut(low_rank);
            for (to, from) in to.zip(scratch.group_out.chunks_exact(hp.out_rank)) {
                to[g * hp.out_rank..(g + 1) * hp.out_rank].copy_from_slice(from);
            }
        }
        self.compute.linear(&w.output_b, &mut scratch.low_rank, out)
    }
}
