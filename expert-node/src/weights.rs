//! Which bytes of a whole model's files hold the tiles of a node.

use std::io;
use std::ops::Range;

use ds4_common::gguf::Tensor;
use ds4_common::model::{HyperParams, LayerTensors, ModelTensors};
use ds4_common::tiles::TileRect;

/// Ranges closer than this are read as one: the operating system reads ahead over the gap anyway.
const JOIN_GAP: usize = 64 << 10;

/// Bytes of the weights of `rects`, in all layers.
#[must_use]
pub(crate) fn held_bytes(hp: &HyperParams, tensors: &ModelTensors, rects: &[TileRect]) -> u64 {
    let layer = |gate: &Tensor, up: &Tensor, down: &Tensor| -> u64 {
        let rect_bytes = |rect: &TileRect| {
            let features = rect.blocks.features(hp.expert_width).len() as u64;
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

/// Bytes of the file that serving `rects` brings into memory: of gate and up the held rows alone,
/// of down the held experts whole, since a strip of columns touches nearly every page of its
/// matrix: several rows share a page.
#[must_use]
pub(crate) fn resident_bytes(hp: &HyperParams, tensors: &ModelTensors, rects: &[TileRect]) -> u64 {
    let touched = tensors.layers.iter().flat_map(|l| touched(hp, l, rects));
    let bytes = |(_, ranges): (_, Vec<Range<usize>>)| -> u64 {
        joined(ranges, 0)
            .iter()
            .map(|range| range.len() as u64)
            .sum()
    };
    touched.map(bytes).sum()
}

/// Reads the pages that [`resident_bytes`] counts into memory and maps them, so that the first call
/// does not fault.
///
/// # Errors
/// A file cannot be read.
pub(crate) fn populate(
    hp: &HyperParams,
    tensors: &ModelTensors,
    rects: &[TileRect],
) -> io::Result<()> {
    for (tensor, ranges) in tensors.layers.iter().flat_map(|l| touched(hp, l, rects)) {
        for range in joined(ranges, JOIN_GAP) {
            tensor.populate(range)?;
        }
    }
    Ok(())
}

/// The bytes of one layer's expert tensors that computing `rects` reads pages of, in order and
/// without overlaps.
pub(crate) fn held_ranges<'t>(
    hp: &HyperParams,
    layer: &'t LayerTensors,
    rects: &[TileRect],
) -> [(&'t Tensor, Vec<Range<usize>>); 3] {
    touched(hp, layer, rects).map(|(tensor, ranges)| (tensor, joined(ranges, 0)))
}

/// The bytes of one layer's expert tensors that computing `rects` reads pages of.
fn touched<'t>(
    hp: &HyperParams,
    layer: &'t LayerTensors,
    rects: &[TileRect],
) -> [(&'t Tensor, Vec<Range<usize>>); 3] {
    let rows = |tensor: &'t Tensor| {
        let row = row_bytes(tensor, hp.hidden);
        let ranges = rects.iter().flat_map(|rect| {
            let features = rect.blocks.features(hp.expert_width);
            (rect.experts.start..rect.experts.end).map(move |expert| {
                let first = expert as usize * hp.expert_width;
                (first + features.start) * row..(first + features.end) * row
            })
        });
        (tensor, ranges.collect())
    };
    let matrix = row_bytes(&layer.down_exps, hp.expert_width) * hp.hidden;
    let experts = rects
        .iter()
        .map(|rect| rect.experts.start as usize * matrix..rect.experts.end as usize * matrix);
    [
        rows(&layer.gate_exps),
        rows(&layer.up_exps),
        (&layer.down_exps, experts.collect()),
    ]
}

/// Shapes were checked when the tensors were bound.
fn row_bytes(tensor: &Tensor, cols: usize) -> usize {
    tensor.ty().row_bytes(cols as u64).unwrap_or(0) as usize
}

/// Sorted, with overlaps and gaps of up to `gap` closed.
fn joined(mut ranges: Vec<Range<usize>>, gap: usize) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| range.start);
    let mut out: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.end + gap => last.end = last.end.max(range.end),
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
        assert_eq!(joined(ranges.clone(), JOIN_GAP), [0..30, far..far + 5]);
        assert_eq!(joined(ranges, 0), [0..10, 20..30, far..far + 5]);
    }
}
