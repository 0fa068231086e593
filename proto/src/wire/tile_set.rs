//! Tile rectangles, in the form that travels.

use bytes::{BufMut, Bytes, BytesMut};
use ds4_common::tiles::{Grid, Span, TileRect, TileSet};

use super::{WireError, bound};
use crate::limits::{MAX_RECTS, RECT_BYTES};

/// Reads rectangles: their bytes are counted before any of them is read.
///
/// # Errors
/// The bytes are not a whole number of rectangles, or as for [`TileSet::new`].
pub fn decode_tiles(grid: Grid, bytes: &[u8]) -> Result<TileSet, WireError> {
    let (raw, rest) = bytes.as_chunks::<RECT_BYTES>();
    if !rest.is_empty() {
        return Err(WireError::Rects(bytes.len()));
    }
    let most = MAX_RECTS as u64;
    bound("the number of tile rectangles", raw.len() as u64, 1, most)?;
    let rects = raw
        .iter()
        .map(|raw| {
            let word =
                |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
            TileRect {
                experts: Span::new(word(0), word(4)),
                blocks: Span::new(word(8), word(12)),
            }
        })
        .collect();
    Ok(TileSet::new(grid, rects)?)
}

/// The form that [`decode_tiles`] reads.
#[must_use]
pub fn encode_tiles(tiles: &TileSet) -> Bytes {
    let mut out = BytesMut::with_capacity(tiles.rects().len() * RECT_BYTES);
    for TileRect { experts, blocks } in tiles.rects() {
        for word in [experts.start, experts.end, blocks.start, blocks.end] {
            out.put_u32_le(word);
        }
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid {
        experts: 8,
        blocks: 4,
    };

    #[test]
    fn bytes_are_counted_before_they_are_read() {
        let rects = GRID.cut(2, 2).expect("cut")[1..3].to_vec();
        let set = TileSet::new(GRID, rects).expect("set");
        let bytes = encode_tiles(&set);
        assert_eq!(bytes.len(), 2 * RECT_BYTES);
        assert_eq!(decode_tiles(GRID, &bytes), Ok(set));
        assert_eq!(decode_tiles(GRID, &bytes[1..]), Err(WireError::Rects(31)));
        let found = MAX_RECTS as u64 + 1;
        assert!(matches!(
            decode_tiles(GRID, &bytes[..RECT_BYTES].repeat(MAX_RECTS + 1)),
            Err(WireError::Bound { found: f, .. }) if f == found
        ));
        let reversed: Vec<u8> = [u32::MAX, 1, 0, 1].map(u32::to_le_bytes).concat();
        assert!(decode_tiles(GRID, &reversed).is_err());
    }
}
