//! One step through all layers.

use std::sync::Arc;
use std::time::Instant;

use ds4_common::checksum::all_finite;
use ds4_common::expert::{BatchFields, ExpertBatch, ExpertInput, MoeShape, Route};
use ds4_common::math::{add_row, rms_norm, sigmoid};
use ds4_common::model::HyperParams;
use ds4_common::quant::dequantize_row;
use rayon::prelude::*;

use super::attention::{AttentionLayer, AttentionScratch};
use super::batch::{Batch, Ropes};
use super::dense::DenseOps;
use super::error::EngineError;
use super::expert_backend::{ExpertBackend, ExpertError};
use super::hyper_connection::{
    HcConstants, MAX_STREAMS, Mixing, mix_in, mix_out, mixing, norm_streams,
};
use super::kv_cache::LayerCache;
use super::moe::{RouterScratch, SharedScratch, route, shared_expert};
use super::observer::{Observation, Observer, Point};
use super::operand::Operand;
use super::stage::{Stage, StageTimes};
use super::step::{Chunk, ChunkOutput, LogitsWanted};
use super::weights::{EngineWeights, FfnWeights, HcWeights, LayerWeights};

/// Buffers of a step, kept between steps. All are row-major over the batch's rows.
#[derive(Debug, Default)]
pub(super) struct StepScratch {
    /// The rows of the step that were not cancelled.
    batch: Batch,
    /// The residual, `(rows x streams x hidden)`.
    streams: Vec<f32>,
    /// The residual, normed over all streams of a row, `(rows x streams*hidden)`.
    hc_input: Operand,
    /// Mixing logits, `(rows x streams*(2+streams))`; at the head `(rows x streams)`.
    hc_logits: Vec<f32>,
    /// One for each row.
    mixings: Vec<Mixing>,
    /// Sublayer input before its norm, `(rows x hidden)`.
    mixed: Vec<f32>,
    /// Sublayer input after its norm, `(rows x hidden)`.
    normed: Operand,
    /// Sublayer output, `(rows x hidden)`.
    output: Vec<f32>,
    attention: AttentionScratch,
    /// `(rows x experts)`.
    router_logits: Vec<f32>,
    shared: SharedScratch,
    /// Sums over the routed experts, `(rows x hidden)`.
    routed: Vec<f32>,
    /// `(wanted rows x vocab)`.
    pub(super) logits: Vec<f32>,
}

/// Everything a step reads and the scratch it writes.
pub(super) struct Forward<'a> {
    pub(super) hp: &'a HyperParams,
    pub(super) weights: &'a EngineWeights,
    pub(super) ropes: &'a Ropes,
    pub(super) dense: DenseOps,
    pub(super) experts: &'a dyn ExpertBackend,
    pub(super) scratch: &'a mut StepScratch,
    pub(super) times: &'a mut StageTimes,
    /// Sees what is computed.
    pub(super) observer: Option<&'a mut dyn Observer>,
}

impl Forward<'_> {
    /// Runs checked chunks; `outputs` has one entry for each.
    pub(super) fn run(
        &mut self,
        chunks: &mut [Chunk<'_>],
        outputs: &mut [ChunkOutput],
    ) -> Result<(), EngineError> {
        let mut mark = Instant::now();
        self.scratch.batch.clear();
        for (i, chunk) in chunks.iter_mut().enumerate() {
            let position = chunk.sequence.position;
            self.scratch
                .batch
                .push(i, position, chunk.tokens, self.ropes);
            // Until its last layer is done, the sequence stands at several positions at once.
            chunk.sequence.broken = true;
        }
        self.embed();
        self.show(None, Point::Embedding, |s| &s.streams);
        self.times.lap(Stage::Embedding, &mut mark);
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.drop_cancelled(chunks, outputs);
            if self.scratch.batch.rows() == 0 {
                break;
            }
            self.attention(index, layer, chunks, &mut mark)?;
            match self.feed_forward(index, layer, chunks, &mut mark) {
                Err(EngineError::Experts(ExpertError::GivenUp)) => {
                    // Without this layer's experts no row can go on.
                    for rows in &self.scratch.batch.chunks {
                        outputs[rows.chunk].cancelled = true;
                    }
                    self.drop_cancelled(chunks, outputs);
                    break;
                }
                done => done?,
            }
        }
        self.head(chunks, outputs)?;
        self.show(None, Point::Logits, |s| &s.logits);
        self.times.lap(Stage::Head, &mut mark);
        for rows in &self.scratch.batch.chunks {
            let chunk = &mut chunks[rows.chunk];
            chunk.sequence.position += chunk.tokens.len();
            chunk.sequence.broken = false;
        }
        Ok(())
    }

    fn show(
        &mut self,
        layer: Option<usize>,
        point: Point,
        values: impl FnOnce(&StepScratch) -> &[f32],
    ) {
        if let Some(observer) = &mut self.observer {
            let values = values(self.scratch);
            observer.observe(Observation::Values {
                layer,
                point,
                values,
            });
        }
    }

    /// Every stream starts as the token's embedding.
    fn embed(&mut self) {
        let hidden = self.hp.hidden;
        let embedding = &self.weights.embedding;
        let tokens = &self.scratch.batch.tokens;
        let width = self.hp.streams * hidden;
        self.scratch.streams.resize(tokens.len() * width, 0.0);
        self.scratch
            .streams
            .par_chunks_mut(width)
            .zip(tokens)
            .for_each(|(streams, &token)| {
                let (first, others) = streams.split_at_mut(hidden);
                dequantize_row(embedding.ty(), embedding.row_bytes(token as usize), first);
                others
                    .chunks_exact_mut(hidden)
                    .for_each(|stream| stream.copy_from_slice(first));
            });
    }

    fn drop_cancelled(&mut self, chunks: &[Chunk<'_>], outputs: &mut [ChunkOutput]) {
        for (chunk, output) in chunks.iter().zip(outputs.iter_mut()) {
            output.cancelled |= chunk.is_cancelled();
        }
        let StepScratch { batch, streams, .. } = &mut *self.scratch;
        if batch
            .chunks
            .iter()
            .any(|rows| outputs[rows.chunk].cancelled)
        {
            let width = self.hp.streams * self.hp.hidden;
            batch.retain(
                |chunk| !outputs[chunk].cancelled,
                |from, to, len| streams.copy_within(from * width..(from + len) * width, to * width),
            );
            streams.truncate(batch.rows() * width);
        }
    }

    fn attention(
        &mut self,
        index: usize,
        layer: &LayerWeights,
        chunks: &mut [Chunk<'_>],
        mark: &mut Instant,
    ) -> Result<(), EngineError> {
        self.mix_in(&layer.attention_hc, &layer.attention.norm)?;
        self.show(Some(index), Point::AttentionInput, |s| s.normed.values());
        self.times.lap(Stage::HyperConnections, mark);
        let attention = AttentionLayer {
            hp: self.hp,
            dense: self.dense,
            ropes: self.ropes,
            weights: &layer.attention,
            ratio: self.hp.compress_ratios[index],
        };
        let StepScratch {
            batch,
            normed,
            attention: scratch,
            output,
            ..
        } = &mut *self.scratch;
        let mut caches: Vec<&mut LayerCache> = Vec::with_capacity(batch.chunks.len());
        let mut remaining = chunks.iter_mut().enumerate();
        for rows in &batch.chunks {
            // Both lists ascend, so one pass over the chunks finds them all.
            if let Some((_, chunk)) = remaining.find(|(i, _)| *i == rows.chunk) {
                caches.push(&mut chunk.sequence.layers[index]);
            }
        }
        let times = &mut *self.times;
        let mut lap = |stage| times.lap(stage, mark);
        attention.forward(batch, &mut caches, normed, scratch, output, &mut lap)?;
        self.show(Some(index), Point::AttentionOutput, |s| &s.output);
        self.mix_out();
        self.show(Some(index), Point::AttentionStreams, |s| &s.streams);
        self.times.lap(Stage::HyperConnections, mark);
        Ok(())
    }

    fn feed_forward(
        &mut self,
        index: usize,
        layer: &LayerWeights,
        chunks: &[Chunk<'_>],
        mark: &mut Instant,
    ) -> Result<(), EngineError> {
        self.mix_in(&layer.ffn_hc, &layer.ffn.norm)?;
        self.show(Some(index), Point::ExpertInput, |s| s.normed.values());
        self.times.lap(Stage::HyperConnections, mark);
        let batch = Arc::new(self.route(index, &layer.ffn)?);
        self.show(Some(index), Point::RouterLogits, |s| &s.router_logits);
        if let Some(observer) = &mut self.observer {
            observer.observe(Observation::Experts(&batch));
        }
        self.times.lap(Stage::Router, mark);
        let pending = self.experts.begin(batch)?;
        self.times.lap(Stage::RoutedExperts, mark);
        let StepScratch {
            batch,
            normed,
            shared,
            output,
            routed,
            ..
        } = &mut *self.scratch;
        let clamp = self.hp.clamp_shared[index];
        shared_expert(self.dense, &layer.ffn, clamp, normed, shared, output)?;
        self.times.lap(Stage::SharedExpert, mark);
        routed.resize(output.len(), 0.0);
        // The wait ends early only if all chunks were cancelled: one that stays needs the sum.
        let give_up = || {
            let mut of_step = batch.chunks.iter().map(|rows| &chunks[rows.chunk]);
            of_step.all(Chunk::is_cancelled)
        };
        pending.finish(&give_up, routed)?;
        self.times.lap(Stage::RoutedExperts, mark);
        self.show(Some(index), Point::SharedExpert, |s| &s.output);
        self.show(Some(index), Point::RoutedSum, |s| &s.routed);
        let hidden = self.hp.hidden;
        let StepScratch { output, routed, .. } = &mut *self.scratch;
        output
            .par_chunks_mut(hidden)
            .zip(routed.par_chunks(hidden))
            .for_each(|(y, routed)| add_row(y, routed));
        self.show(Some(index), Point::ExpertOutput, |s| &s.output);
        self.mix_out();
        self.show(Some(index), Point::LayerStreams, |s| &s.streams);
        self.times.lap(Stage::HyperConnections, mark);
        Ok(())
    }

    /// Chooses experts for every row and packs the call.
    fn route(&mut self, index: usize, ffn: &FfnWeights) -> Result<ExpertBatch, EngineError> {
        let StepScratch {
            batch,
            normed,
            router_logits,
            ..
        } = &mut *self.scratch;
        self.dense.linear(&ffn.router, normed, router_logits)?;
        if !all_finite(normed.values()) {
            return Err(ExpertError::InputNotFinite { layer: index }.into());
        }
        let experts_used = self.hp.experts_used;
        let mut routes = vec![
            Route {
                expert: 0,
                weight: 0.0
            };
            batch.rows() * experts_used
        ];
        routes
            .par_chunks_exact_mut(experts_used)
            .zip(router_logits.par_chunks_exact(self.hp.experts))
            .zip(&batch.tokens)
            .for_each_init(
                RouterScratch::default,
                |scratch, ((routes, logits), &token)| {
                    route(self.hp, &ffn.choice, token, logits, scratch, routes);
                },
            );
        let [gate, up] = ffn
            .routed_types
            .map(|ty| self.dense.numerics.activation_format(ty));
        // Gate and up of different types would need two formats: send the plain values then.
        let input = if gate == up {
            ExpertInput::from_activations(normed.in_format(self.dense.kernels, gate))
        } else {
            ExpertInput::F32(normed.values().to_vec())
        };
        let fields = BatchFields {
            layer: index,
            tokens: batch.rows(),
            routes,
            input,
            round: self.dense.numerics.rounds_activations(),
        };
        let batch = ExpertBatch::new(MoeShape::of(self.hp), fields);
        Ok(batch.map_err(ExpertError::from)?)
    }

    /// Streams to the sublayer's normed input; keeps what [`Self::mix_out`] needs.
    fn mix_in(&mut self, hc: &HcWeights, norm: &[f32]) -> Result<(), EngineError> {
        let (hp, hidden) = (self.hp, self.hp.hidden);
        let rows = self.scratch.batch.rows();
        self.stream_logits(hc, rows)?;
        let StepScratch {
            streams,
            hc_logits,
            mixings,
            mixed,
            normed,
            ..
        } = &mut *self.scratch;
        mixings.resize(rows, Mixing::default());
        mixed.resize(rows * hidden, 0.0);
        let constants = HcConstants {
            scale: &hc.scale,
            base: &hc.base,
            streams: hp.streams,
            iterations: hp.sinkhorn_iterations,
            epsilon: hp.hc_eps,
        };
        let inputs = streams
            .par_chunks(hp.streams * hidden)
            .zip(hc_logits.par_chunks(hc.base.len()));
        mixings
            .par_iter_mut()
            .zip(mixed.par_chunks_mut(hidden))
            .zip(normed.values_mut(hidden, rows).par_chunks_mut(hidden))
            .zip(inputs)
            .for_each(|(((mix, mixed), normed), (streams, logits))| {
                *mix = mixing(logits, &constants);
                self.dense.kernels.vectorised(|| {
                    mix_in(streams, &mix.pre[..hp.streams], mixed);
                    rms_norm(mixed, norm, hp.rms_eps, normed);
                });
            });
        Ok(())
    }

    /// The mixing logits of every row: a matrix over all its streams, normed together.
    fn stream_logits(&mut self, hc: &HcWeights, rows: usize) -> Result<(), EngineError> {
        let StepScratch {
            streams,
            hc_input,
            hc_logits,
            ..
        } = &mut *self.scratch;
        let width = self.hp.streams * self.hp.hidden;
        let normed = hc_input.values_mut(width, rows);
        normed
            .par_chunks_mut(width)
            .zip(streams.par_chunks(width))
            .for_each(|(out, streams)| {
                let norm = || norm_streams(streams, self.hp.rms_eps, out);
                self.dense.kernels.vectorised(norm);
            });
        self.dense.linear(&hc.function, hc_input, hc_logits)
    }

    /// The sublayer's output back to the streams.
    fn mix_out(&mut self) {
        let StepScratch {
            streams,
            output,
            mixings,
            ..
        } = &mut *self.scratch;
        let (hidden, count) = (self.hp.hidden, self.hp.streams);
        streams
            .par_chunks_mut(count * hidden)
            .zip(output.par_chunks(hidden))
            .zip(mixings.par_iter())
            .for_each(|((streams, y), mix)| {
                let mix = || mix_out(streams, y, mix, count);
                self.dense.kernels.vectorised(mix);
            });
    }

    /// Logits of the wanted rows.
    fn head(
        &mut self,
        chunks: &[Chunk<'_>],
        outputs: &mut [ChunkOutput],
    ) -> Result<(), EngineError> {
        let (hp, vocab) = (self.hp, self.hp.vocab);
        let width = hp.streams * hp.hidden;
        let StepScratch {
            batch,
            streams,
            logits,
            ..
        } = &mut *self.scratch;
        let mut kept = 0;
        for rows in &batch.chunks {
            let first = match chunks[rows.chunk].logits {
                LogitsWanted::None => rows.len,
                LogitsWanted::Last => rows.len - 1,
                LogitsWanted::All => 0,
            };
            let (from, count) = (rows.first + first, rows.len - first);
            streams.copy_within(from * width..(from + count) * width, kept * width);
            outputs[rows.chunk].logits = kept * vocab..(kept + count) * vocab;
            kept += count;
        }
        streams.truncate(kept * width);
        logits.clear();
        if kept == 0 {
            return Ok(());
        }
        self.head_rows(kept)
    }

    /// The head over the first `rows` rows of the streams.
    fn head_rows(&mut self, rows: usize) -> Result<(), EngineError> {
        let hp = self.hp;
        let hc = &self.weights.head_hc;
        let width = hp.streams * hp.hidden;
        self.stream_logits(hc, rows)?;
        let StepScratch {
            streams,
            hc_logits,
            mixed,
            normed,
            logits,
            ..
        } = &mut *self.scratch;
        mixed.resize(rows * hp.hidden, 0.0);
        let inputs = streams
            .par_chunks(width)
            .zip(hc_logits.par_chunks(hp.streams));
        mixed
            .par_chunks_mut(hp.hidden)
            .zip(normed.values_mut(hp.hidden, rows).par_chunks_mut(hp.hidden))
            .zip(inputs)
            .for_each(|((mixed, normed), (streams, m))| {
                let mut pre = [0.0; MAX_STREAMS];
                for ((p, m), b) in pre.iter_mut().zip(m).zip(&hc.base) {
                    *p = sigmoid(m * hc.scale[0] + b) + hp.hc_eps;
                }
                mix_in(streams, &pre[..hp.streams], mixed);
                rms_norm(mixed, &self.weights.output_norm, hp.rms_eps, normed);
            });
        self.dense.linear(&self.weights.output, normed, logits)?;
        self.show(None, Point::HeadInput, |s| s.normed.values());
        Ok(())
    }
}
