//! The tiles of a node, in the form that travels: once if they are the same in every layer, else by
//! runs of layers.

use bytes::Bytes;
use ds4_common::tiles::{Grid, Holdings};

use super::{WireError, bound, decode_tiles, encode_tiles};
use crate::limits::{MAX_HELD_RECTS, RECT_BYTES};
use crate::pb;

/// The fields `held` and `held_layers` of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedHoldings {
    /// Rectangles of every layer, 16 bytes each; empty where layers differ.
    pub held: Bytes,
    /// Rectangles of runs of layers; empty where layers are equal.
    pub held_layers: Vec<pb::HeldLayers>,
}

/// The form that [`decode_held`] reads.
#[must_use]
pub fn encode_held(held: &Holdings) -> EncodedHoldings {
    if let Some(tiles) = held.same_in_all_layers() {
        return EncodedHoldings {
            held: encode_tiles(tiles),
            held_layers: Vec::new(),
        };
    }
    let entry = |(layers, tiles): (std::ops::Range<usize>, Option<&_>)| {
        Some(pb::HeldLayers {
            first_layer: layers.start as u32,
            end_layer: layers.end as u32,
            rects: encode_tiles(tiles.map(AsRef::as_ref)?),
        })
    };
    EncodedHoldings {
        held: Bytes::new(),
        held_layers: held.runs().filter_map(entry).collect(),
    }
}

/// Reads the tiles that a node holds of a model with `layers` layers.
///
/// # Errors
/// Layers are out of order or outside of the model, there are too many rectangles, or those of a
/// layer do not form a [`ds4_common::tiles::TileSet`].
pub fn decode_held(
    grid: Grid,
    layers: usize,
    held: &Bytes,
    held_layers: &[pb::HeldLayers],
) -> Result<Holdings, WireError> {
    if held_layers.is_empty() {
        return Ok(Holdings::uniform(grid, layers, decode_tiles(grid, held)?));
    }
    bound("held_layers", held_layers.len() as u64, 1, layers as u64)?;
    let bytes: usize = held_layers.iter().map(|run| run.rects.len()).sum();
    let most = MAX_HELD_RECTS as u64;
    bound(
        "the number of held rectangles",
        (bytes / RECT_BYTES) as u64,
        1,
        most,
    )?;
    let mut all = vec![None; layers];
    let mut next = 0;
    for run in held_layers {
        let (first, end) = (u64::from(run.first_layer), u64::from(run.end_layer));
        bound("first_layer", first, next, layers as u64 - 1)?;
        bound("end_layer", end, first + 1, layers as u64)?;
        let tiles = decode_tiles(grid, &run.rects)?;
        all[first as usize..end as usize].fill(Some(tiles));
        next = end;
    }
    Ok(Holdings::of_layers(grid, all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ds4_common::tiles::TileSet;

    const GRID: Grid = Grid {
        experts: 8,
        blocks: 4,
    };

    fn layered() -> Holdings {
        let halves = GRID.cut(1, 2).expect("cut");
        let layers = vec![vec![halves[0]], Vec::new(), halves.clone(), halves];
        Holdings::new(GRID, layers).expect("holdings")
    }

    fn decode(fields: &EncodedHoldings) -> Result<Holdings, WireError> {
        decode_held(GRID, 4, &fields.held, &fields.held_layers)
    }

    #[test]
    fn equal_layers_travel_once_and_others_by_run() {
        let uniform = Holdings::uniform(GRID, 4, TileSet::whole(GRID));
        let fields = encode_held(&uniform);
        assert!(fields.held_layers.is_empty());
        assert_eq!(decode(&fields), Ok(uniform));
        let fields = encode_held(&layered());
        assert_eq!(fields.held_layers.len(), 2);
        assert_eq!(decode(&fields), Ok(layered()));
    }

    #[test]
    fn layers_out_of_order_or_outside_are_refused() {
        type Lie = fn(&mut Vec<pb::HeldLayers>);
        let lies: [Lie; 6] = [
            |runs| runs.swap(0, 1),
            |runs| runs[1].end_layer = 5,
            |runs| runs[1].end_layer = runs[1].first_layer,
            |runs| runs[1].first_layer = 0,
            |runs| runs[0].rects = Bytes::new(),
            |runs| {
                runs[1] = pb::HeldLayers {
                    first_layer: u32::MAX,
                    end_layer: 0,
                    ..runs[1].clone()
                }
            },
        ];
        for (i, lie) in lies.iter().enumerate() {
            let mut fields = encode_held(&layered());
            lie(&mut fields.held_layers);
            assert!(decode(&fields).is_err(), "lie {i}");
        }
    }
}
