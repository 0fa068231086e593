//! Which bytes of the model's files the held tiles are.

use std::io;
use std::ops::Range;

use ds4_common::gguf::Tensor;
use ds4_common::model::{HyperParams, ModelTensors};
use ds4_common::tiles::{BLOCK_WIDTH, TileRect};

/// Ranges closer than this are read as one: the kernel would read ahead over the gap anyway.
const JOIN_GAP: usize = 64 << 10;

/// Bytes of the weights of `rects`, in all layers.
#[must_use]
pub(crate) fn held_bytes(hp: &HyperParams, tensors: &ModelTensors, rects: &[TileRect]) -> u64 {
    let layer = |gate: &Tensor, up: &Tensor, down: &Tensor| -> u64 {
        let rect_bytes = |rect: &TileRect| {
            let features = features(hp, *rect).len() as u64;
            let rows = row_bytes(gate, hp.hidden) + row_bytes(up, hp.hidden);
            let strip = down.ty().row_bytes(features).unwrap_or(0) * hp.hidden as u64;
            u64::from(rect.experts.len()) * (features * rows as u64 + strip)
        };
        rects.iter().map(rect_bytes).sum()
    };
    tensors
        .layers
        .iter()
        .map(|l| layer(&l.gate_exps, &l.up_exps, &l.down_exps))
        .sum()
}

/// Brings the pages of `rects` into memory and maps them, so that the first call does not fault.
///
/// Of gate and up that is the held rows alone. Of down it is the held experts whole: a strip of
/// columns touches nearly every page of its matrix, since several rows share a page.
///
/// # Errors
/// A file cannot be read.
pub(crate) fn populate(
    hp: &HyperParams,
    tensors: &ModelTensors,
    rects: &[TileRect],
) -> io::Result<()> {
    for layer in &tensors.layers {
        for tensor in [&layer.gate_exps, &layer.up_exps] {
            let row = row_bytes(tensor, hp.hidden);
            let ranges = rects.iter().flat_map(|rect| {
                let features = features(hp, *rect);
                (rect.experts.start..rect.experts.end).map(move |expert| {
                    let first = expert as usize * hp.expert_width;
                    (first + features.start) * row..(first + features.end) * row
                })
            });
            populate_ranges(tensor, ranges.collect())?;
        }
        let matrix = row_bytes(&layer.down_exps, hp.expert_width) * hp.hidden;
        let experts = rects
            .iter()
            .map(|rect| rect.experts.start as usize * matrix..rect.experts.end as usize * matrix);
        populate_ranges(&layer.down_exps, experts.collect())?;
    }
    Ok(())
}

/// The inner features of a rectangle's blocks; the last block may be narrow.
fn features(hp: &HyperParams, rect: TileRect) -> Range<usize> {
    let end = rect.blocks.end as usize * BLOCK_WIDTH;
    rect.blocks.start as usize * BLOCK_WIDTH..end.min(hp.expert_width)
}

/// Shapes were checked when the tensors were bound.
fn row_bytes(tensor: &Tensor, cols: usize) -> usize {
    tensor.ty().row_bytes(cols as u64).unwrap_or(0) as usize
}

fn populate_ranges(tensor: &Tensor, ranges: Vec<Range<usize>>) -> io::Result<()> {
    joined(ranges)
        .into_iter()
        .try_for_each(|range| tensor.populate(range))
}

/// Sorted, with overlaps and small gaps closed.
fn joined(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| range.start);
    let mut out: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.end + JOIN_GAP => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_ranges_join_and_far_ones_do_not() {
        let far = 10 * JOIN_GAP;
        let ranges = vec![far..far + 5, 0..10, 20..30, 5..8];
        assert_eq!(joined(ranges), [0..30, far..far + 5]);
    }
}
