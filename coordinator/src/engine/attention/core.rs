//! Softmax attention of every head over one shared list of rows.

use std::cell::RefCell;

use ds4_common::math::exp;
use rayon::prelude::*;

use super::AttentionLayer;
use crate::engine::batch::Batch;
use crate::engine::kv_cache::LayerCache;
use crate::engine::rope::rotate_back;

/// Rows that one batch row attends to: window rows in order, then compressed rows in order.
struct Visible<'a> {
    cache: &'a LayerCache,
    window_first: usize,
    window_count: usize,
    compressed_count: usize,
    /// Ascending; empty means the first `compressed_count`.
    chosen: &'a [u32],
}

/// Per-thread buffers: gathered rows and their softmax weights.
#[derive(Default)]
struct Scratch {
    rows: Vec<f32>,
    weights: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Attention outputs of all rows and heads, rotated back, into `out` (`rows x heads x head_dim`).
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
    // Few rows: split their heads too, so that every thread has work.
    let tasks_a_row = (4 * rayon::current_num_threads()).div_ceil(batch.rows()).min(hp.heads);
    let heads_a_task = hp.heads.div_ceil(tasks_a_row);
    let owner: Vec<usize> = batch
        .chunks
        .iter()
        .enumerate()
        .flat_map(|(i, rows)| std::iter::repeat_n(i, rows.len))
        .collect();
    out.par_chunks_mut(width).enumerate().for_each(|(row, out)| {
        let chosen = selection.map_or(&[][..], |all| &all[row]);
        let visible = visible(layer, caches[owner[row]], batch.positions[row], chosen);
        let angles = batch.angles(row, layer.compressing());
        let query = &queries[row * width..(row + 1) * width];
        let span = heads_a_task * hp.head_dim;
        out.par_chunks_mut(span).enumerate().for_each(|(task, out)| {
            let query = &query[task * span..][..out.len()];
            let sinks = &layer.weights.sinks[task * heads_a_task..];
            SCRATCH.with_borrow_mut(|scratch| {
                gather(&visible, hp.head_dim, &mut scratch.rows);
                let heads =
                    query.chunks_exact(hp.head_dim).zip(out.chunks_exact_mut(hp.head_dim));
                for ((query, out), &sink) in heads.zip(sinks) {
                    attend_head(layer, query, sink, scratch, out);
                    rotate_back(out, angles);
                }
            });
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
        window_first: first - cache.window_start,
        window_count: position + 1 - first,
        compressed_count: match (layer.ratio, chosen.len()) {
            (0, _) => 0,
            (ratio, 0) => (position + 1) / ratio,
            (_, count) => count,
        },
        chosen,
    }
}

fn gather(visible: &Visible<'_>, dim: usize, rows: &mut Vec<f32>) {
    rows.resize((visible.window_count + visible.compressed_count) * dim, 0.0);
    let (window, compressed) = rows.split_at_mut(visible.window_count * dim);
    visible.cache.window.read(visible.window_first, window);
    let Some(cache) = &visible.cache.compressed else { return };
    if visible.chosen.is_empty() {
        cache.rows.read(0, compressed);
    } else {
        for (&i, row) in visible.chosen.iter().zip(compressed.chunks_exact_mut(dim)) {
            cache.rows.read(i as usize, row);
        }
    }
}

/// One head: softmax over the rows and a sink that only adds to the denominator.
fn attend_head(
    layer: &AttentionLayer<'_>,
    query: &[f32],
    sink: f32,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let kernels = layer.compute.kernels;
    let dim = query.len();
    let scale = 1.0 / (dim as f32).sqrt();
    let weights = &mut scratch.weights;
    weights.clear();
    weights.extend(scratch.rows.chunks_exact(dim).map(|row| kernels.dot_f32(query, row) * scale));
    let max = weights.iter().copied().fold(sink, f32::max);
    let mut total = exp(sink - max);
    for w in weights.iter_mut() {
        *w = exp(*w - max);
        total += *w;
    }
    out.fill(0.0);
    for (&w, row) in weights.iter().zip(scratch.rows.chunks_exact(dim)) {
        kernels.axpy(w, row, out);
    }
    let inverse = 1.0 / total;
    out.iter_mut().for_each(|v| *v *= inverse);
}
