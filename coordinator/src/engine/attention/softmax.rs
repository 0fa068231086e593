//! Softmax attention of every head over one shared list of rows.

use std::cell::RefCell;

use ds4_common::math::exp;
use rayon::prelude::*;

use super::AttentionLayer;
use crate::engine::batch::Batch;
use crate::engine::kv_cache::LayerCache;
use crate::engine::rope::rotate_back;

/// Rows widened to f32 at once: few enough to stay in a core's cache while all heads of a task are
/// multiplied with them.
const ROWS_AT_ONCE: usize = 32;

/// Rows that one batch row attends to: window rows in order, then compressed rows in order.
struct Visible<'a> {
    cache: &'a LayerCache,
    /// Position of the first window row.
    window_first: usize,
    window_count: usize,
    compressed_count: usize,
    /// Indices of compressed rows, ascending; empty means the first `compressed_count`.
    chosen: &'a [u32],
}

/// Per-thread buffers.
#[derive(Default)]
struct HeadScratch {
    /// `(ROWS_AT_ONCE x head_dim)`.
    rows: Vec<f32>,
    /// Softmax weights, `(heads x visible rows)`.
    weights: Vec<f32>,
    /// One inverse sum of softmax weights per head.
    inverse_sums: Vec<f32>,
}

thread_local! {
    static HEAD_SCRATCH: RefCell<HeadScratch> = RefCell::default();
}

/// Writes the attention outputs of all rows and heads, rotated back, to `out`
/// `(rows x heads x head_dim)`. `queries` has the same shape; `selection` has the chosen compressed
/// rows of every row, or `None` where all are visible.
pub(super) fn attend(
    layer: &AttentionLayer<'_>,
    batch: &Batch,
    caches: &[&LayerCache],
    queries: &[f32],
    selection: Option<&[Vec<u32>]>,
    out: &mut [f32],
) {
    let hp = layer.hp;
    let width = hp.heads * hp.head_dim;
    // With few rows their heads are split too, so that every thread has work, but no finer, since
    // each task reads all visible rows.
    let tasks_per_row = rayon::current_num_threads()
        .div_ceil(batch.rows())
        .min(hp.heads);
    let heads_per_task = hp.heads.div_ceil(tasks_per_row);
    let owner: Vec<usize> = batch
        .chunks
        .iter()
        .enumerate()
        .flat_map(|(i, rows)| std::iter::repeat_n(i, rows.len))
        .collect();
    out.par_chunks_mut(width)
        .enumerate()
        .for_each(|(row, out)| {
            let chosen = selection.map_or(&[][..], |all| &all[row]);
            let visible = visible(layer, caches[owner[row]], batch.positions[row], chosen);
            let angles = batch.angles(row, layer.compressing());
            let query = &queries[row * width..(row + 1) * width];
            let span = heads_per_task * hp.head_dim;
            out.par_chunks_mut(span)
                .enumerate()
                .for_each(|(task, out)| {
                    let query = &query[task * span..][..out.len()];
                    let sinks = &layer.weights.sinks[task * heads_per_task..];
                    HEAD_SCRATCH.with_borrow_mut(|scratch| {
                        attend_heads(layer, &visible, query, sinks, scratch, out);
                    });
                    for head in out.chunks_exact_mut(hp.head_dim) {
                        rotate_back(head, angles);
                    }
                });
        });
}

fn visible<'a>(
    layer: &AttentionLayer<'_>,
    cache: &'a LayerCache,
    position: usize,
    chosen: &'a [u32],
) -> Visible<'a> {
    let first = (position + 1).saturating_sub(layer.hp.window);
    Visible {
        cache,
        window_first: first,
        window_count: position + 1 - first,
        compressed_count: match (layer.ratio, chosen.len()) {
            (0, _) => 0,
            (ratio, 0) => (position + 1) / ratio,
            (_, count) => count,
        },
        chosen,
    }
}

impl Visible<'_> {
    fn count(&self) -> usize {
        self.window_count + self.compressed_count
    }

    /// Calls `each` with runs of rows in order: the first row's index, and the rows' values.
    fn for_each_run(&self, dim: usize, buffer: &mut Vec<f32>, mut each: impl FnMut(usize, &[f32])) {
        buffer.resize(ROWS_AT_ONCE * dim, 0.0);
        let mut first = 0;
        while first < self.count() {
            let compressed = first.checked_sub(self.window_count);
            let end = if compressed.is_some() {
                self.count()
            } else {
                self.window_count
            };
            let run = &mut buffer[..(end - first).min(ROWS_AT_ONCE) * dim];
            match (compressed, &self.cache.compressed) {
                (None, _) => self.cache.window.read(self.window_first + first, run),
                (Some(at), Some(cache)) if self.chosen.is_empty() => cache.rows.read(at, run),
                (Some(at), Some(cache)) => {
                    for (&i, row) in self.chosen[at..].iter().zip(run.chunks_exact_mut(dim)) {
                        cache.rows.read(i as usize, row);
                    }
                }
                // Only layers that compress count compressed rows.
                (Some(_), None) => return,
            }
            each(first, run);
            first += run.len() / dim;
        }
    }
}

/// Softmax attention of some heads over the visible rows, summed in row order for each head.
fn attend_heads(
    layer: &AttentionLayer<'_>,
    visible: &Visible<'_>,
    query: &[f32],
    sinks: &[f32],
    scratch: &mut HeadScratch,
    out: &mut [f32],
) {
    let kernels = layer.dense.kernels;
    let dim = layer.hp.head_dim;
    let count = visible.count();
    let HeadScratch {
        rows,
        weights,
        inverse_sums,
    } = scratch;
    let queries: Vec<&[f32]> = query.chunks_exact(dim).collect();
    let scale = 1.0 / (dim as f32).sqrt();
    weights.resize(queries.len() * count, 0.0);
    inverse_sums.resize(queries.len(), 0.0);
    visible.for_each_run(dim, rows, |first, run| {
        let (values, len) = split(run, dim);
        kernels.dots_grid(&queries, &values[..len], &mut weights[first..], count);
    });
    let heads = weights.chunks_exact_mut(count).zip(sinks);
    for ((weights, &sink), inverse) in heads.zip(inverse_sums.iter_mut()) {
        *inverse = 1.0 / kernels.vectorised(|| soften(weights, scale, sink));
    }
    out.fill(0.0);
    visible.for_each_run(dim, rows, |first, run| {
        let (values, len) = split(run, dim);
        kernels.add_scaled_grid(&weights[first..], count, &values[..len], out);
    });
    for (out, inverse) in out.chunks_exact_mut(dim).zip(inverse_sums.iter()) {
        out.iter_mut().for_each(|v| *v *= inverse);
    }
}

/// The rows of a run as slices, and their number.
fn split(run: &[f32], dim: usize) -> ([&[f32]; ROWS_AT_ONCE], usize) {
    let mut rows: [&[f32]; ROWS_AT_ONCE] = [&[]; ROWS_AT_ONCE];
    for (to, row) in rows.iter_mut().zip(run.chunks_exact(dim)) {
        *to = row;
    }
    (rows, run.len() / dim)
}

/// Turns a head's dot products into unnormalised softmax weights and returns their sum. The sink
/// enters the sum, unscaled, and nothing else.
#[inline(always)]
fn soften(weights: &mut [f32], scale: f32, sink: f32) -> f32 {
    weights.iter_mut().for_each(|w| *w *= scale);
    let mut lanes = [sink; 16];
    let (whole, rest) = weights.as_chunks::<16>();
    for part in whole {
        for (lane, &w) in lanes.iter_mut().zip(part) {
            *lane = lane.max(w);
        }
    }
    let max = lanes.iter().chain(rest).copied().fold(sink, f32::max);
    weights.iter_mut().for_each(|w| *w = exp(*w - max));
    weights.iter().fold(exp(sink - max), |total, w| total + w)
}
