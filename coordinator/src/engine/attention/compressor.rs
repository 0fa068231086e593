//! Pools every `ratio` tokens into one compressed row.

use ds4_common::math::{hadamard, rms_norm, round_e4m3_blocks, round_fp4_blocks};

use super::AttentionLayer;
use super::pool::pool;
use crate::engine::batch::{Batch, ChunkRows};
use crate::engine::kv_cache::{Compressed, RowStream};
use crate::engine::rope::rotate;
use crate::engine::weights::{CompressorWeights, Linear};

/// What a compressed row serves as, which decides how it is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowRounding {
    /// Key and value of attention: FP8 except for the rotated part.
    Key,
    /// Key of the indexer: Hadamard, then FP4.
    Index,
}

/// Projections of the layer's input, `(rows x width)` each.
#[derive(Debug, Default)]
pub(super) struct CompressorScratch {
    values: Vec<f32>,
    scores: Vec<f32>,
}

impl CompressorScratch {
    /// The matrices to multiply with the layer's input, and where the products go.
    pub(super) fn projections<'a>(
        &'a mut self,
        weights: &'a CompressorWeights,
    ) -> [(&'a Linear, &'a mut Vec<f32>); 2] {
        [
            (&weights.kv, &mut self.values),
            (&weights.gate, &mut self.scores),
        ]
    }

    /// Adds the projected rows of one chunk to what the compressor pools, and appends the rows whose
    /// windows close.
    pub(super) fn push(
        &self,
        layer: &AttentionLayer<'_>,
        weights: &CompressorWeights,
        batch: &Batch,
        rows: ChunkRows,
        target: &mut Compressed<RowStream>,
        rounding: RowRounding,
    ) {
        let (width, dim) = (weights.kv.rows(), weights.norm.len());
        let ratio = target.rows.ratio();
        let rope = &layer.ropes.compressing;
        let mut entry = vec![0.0; 2 * dim];
        let (pooled, entry) = entry.split_at_mut(dim);
        let mut input = Vec::with_capacity(2 * width);
        let mut angles = Vec::new();
        for row in rows.first..rows.first + rows.len {
            let position = batch.positions[row];
            let span = row * width..(row + 1) * width;
            let bias = &weights.position_bias[position % ratio * width..][..width];
            let scores = self.scores[span.clone()].iter().zip(bias);
            input.clear();
            input.extend_from_slice(&self.values[span]);
            input.extend(scores.map(|(score, bias)| score + bias));
            target.inputs.extend(&input);
            if (position + 1).is_multiple_of(ratio) {
                let first = target.inputs.first_needed(position);
                let inputs = (first..=position).filter_map(|row| target.inputs.stored(row));
                let inputs: Vec<&[f32]> = inputs.collect();
                // A row stands at the position of its window's first token.
                rope.angles(position + 1 - ratio, &mut angles);
                layer.dense.kernels.vectorised(|| {
                    pool(&inputs, ratio, pooled);
                    rms_norm(pooled, &weights.norm, layer.hp.rms_eps, entry);
                    rotate(entry, &angles);
                    if layer.dense.numerics.rounds_cache() {
                        round_entry(entry, rounding, rope.dims());
                    }
                });
                target.rows.extend(entry);
            }
            target.inputs.trim();
        }
    }
}

#[inline(always)]
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
