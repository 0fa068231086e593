//! Turns every `ratio` tokens into one row that stands for them.

use ds4_common::math::{hadamard, rms_norm, round_e4m3_blocks, round_fp4_blocks};

use super::AttentionLayer;
use crate::engine::EngineError;
use crate::engine::batch::Batch;
use crate::engine::compute::Compute;
use crate::engine::kv_cache::Compressed;
use crate::engine::operand::Operand;
use crate::engine::rope::rotate;
use crate::engine::weights::CompressorWeights;

/// What a finished row serves as, which decides how it is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowRounding {
    /// Key and value of attention: FP8 but for the rotated part.
    Key,
    /// Key of the indexer: Hadamard, then FP4.
    Index,
}

#[derive(Debug, Default)]
pub(super) struct CompressorScratch {
    values: Vec<f32>,
    scores: Vec<f32>,
    pooled: Vec<f32>,
    entry: Vec<f32>,
    angles: Vec<(f32, f32)>,
}

impl CompressorScratch {
    /// Values and scores of every row.
    pub(super) fn project(
        &mut self,
        compute: Compute,
        weights: &CompressorWeights,
        x: &mut Operand,
    ) -> Result<(), EngineError> {
        compute.linear(&weights.kv, x, &mut self.values)?;
        compute.linear(&weights.gate, x, &mut self.scores)
    }

    /// Feeds the projected rows to each chunk's state and appends the entries that close.
    pub(super) fn push<'c>(
        &mut self,
        layer: &AttentionLayer<'_>,
        weights: &CompressorWeights,
        batch: &Batch,
        targets: impl Iterator<Item = Option<&'c mut Compressed>>,
        rounding: RowRounding,
    ) {
        let width = weights.kv.rows();
        let dim = weights.norm.len();
        self.pooled.resize(dim, 0.0);
        self.entry.resize(dim, 0.0);
        for (rows, target) in batch.chunks.iter().zip(targets) {
            let Some(target) = target else { continue };
            let ratio = target.state.ratio();
            for row in rows.first..rows.first + rows.len {
                let position = batch.positions[row];
                let span = row * width..(row + 1) * width;
                let bias = &weights.position_bias[position % ratio * width..][..width];
                let scores = self.scores[span.clone()].iter().zip(bias).map(|(s, b)| s + b);
                if target.state.take(position, &self.values[span], scores, &mut self.pooled) {
                    rms_norm(&self.pooled, &weights.norm, layer.hp.rms_eps, &mut self.entry);
                    // A row stands at the position of its window's first token.
                    layer.ropes.compressing.angles(position + 1 - ratio, &mut self.angles);
                    rotate(&mut self.entry, &self.angles);
                    if layer.compute.numerics.rounds_cache() {
                        round_entry(&mut self.entry, rounding, layer.ropes.compressing.dims());
                    }
                    target.rows.push(&self.entry);
                }
            }
        }
    }
}

fn round_entry(entry: &mut [f32], rounding: RowRounding, rope_dims: usize) {
    match rounding {
        RowRounding::Key => {
            let plain = entry.len() - rope_dims;
            round_e4m3_blocks(&mut entry[..plain]);
        }
        RowRounding::Index => {
            hadamard(entry);
            round_fp4_blocks(entry);
        }
    }
}
