//! Rectangles that share no tile.

use bytes::{BufMut, Bytes, BytesMut};
use ds4_common::tiles::{Grid, Span, TileRect};

use super::{WireError, bound};
use crate::limits::{MAX_RECTS, RECT_BYTES};

/// Disjoint rectangles inside a grid, in the order in which they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileSet {
    rects: Vec<TileRect>,
}

impl TileSet {
    /// # Errors
    /// There are none or too many, one is empty or outside of `grid`, or two share a tile.
    pub fn new(grid: Grid, rects: Vec<TileRect>) -> Result<Self, WireError> {
        count(rects.len())?;
        for (i, rect) in rects.iter().enumerate() {
            rect.check(grid)?;
            if rects[..i].iter().any(|other| shared(*rect, *other) > 0) {
                return Err(WireError::Overlap(*rect));
            }
        }
        Ok(TileSet { rects })
    }

    /// Rectangles as they travel: their bytes are counted before any of them is read.
    ///
    /// # Errors
    /// The bytes are no whole number of rectangles, or as for [`TileSet::new`].
    pub fn decode(grid: Grid, bytes: &[u8]) -> Result<Self, WireError> {
        let (raw, rest) = bytes.as_chunks::<RECT_BYTES>();
        if !rest.is_empty() {
            return Err(WireError::Rects(bytes.len()));
        }
        count(raw.len())?;
        let rects = raw
            .iter()
            .map(|raw| {
                let word = |at: usize| {
                    u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
                };
                TileRect {
                    experts: Span::new(word(0), word(4)),
                    blocks: Span::new(word(8), word(12)),
                }
            })
            .collect();
        Self::new(grid, rects)
    }

    /// The form that [`TileSet::decode`] reads.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.rects.len() * RECT_BYTES);
        for TileRect { experts, blocks } in &self.rects {
            for word in [experts.start, experts.end, blocks.start, blocks.end] {
                out.put_u32_le(word);
            }
        }
        out.freeze()
    }

    #[must_use]
    pub fn rects(&self) -> &[TileRect] {
        &self.rects
    }

    /// Whether every tile of `rect` is in one of the rectangles.
    #[must_use]
    pub fn covers(&self, rect: TileRect) -> bool {
        // The rectangles are disjoint, so what they share with `rect` adds up to its area only if
        // nothing of it is left out.
        let inside: u64 = self.rects.iter().map(|held| shared(*held, rect)).sum();
        inside == shared(rect, rect)
    }

    /// Maximal subtrees of all rectangles, which is the number of rows of a token with leaves
    /// everywhere.
    #[must_use]
    pub fn subtrees(&self, grid: Grid) -> usize {
        self.rects.iter().map(|r| r.subtrees(grid).len()).sum()
    }
}

fn count(rects: usize) -> Result<(), WireError> {
    let most = MAX_RECTS as u64;
    bound("the number of tile rectangles", rects as u64, 1, most)
}

/// Tiles that both rectangles hold.
fn shared(a: TileRect, b: TileRect) -> u64 {
    let axis = |a: Span, b: Span| {
        let both = Span::new(a.start.max(b.start), a.end.min(b.end));
        u64::from(both.len())
    };
    axis(a.experts, b.experts) * axis(a.blocks, b.blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid {
        experts: 8,
        blocks: 4,
    };

    fn rect(e0: u32, e1: u32, b0: u32, b1: u32) -> TileRect {
        TileRect {
            experts: Span::new(e0, e1),
            blocks: Span::new(b0, b1),
        }
    }

    #[test]
    fn covers_across_borders_but_not_across_gaps() {
        let set = TileSet::new(GRID, vec![rect(0, 4, 0, 2), rect(4, 8, 0, 2)]).expect("set");
        assert!(set.covers(rect(2, 6, 0, 1)));
        assert!(set.covers(rect(0, 8, 0, 2)));
        assert!(!set.covers(rect(0, 8, 1, 3)));
        assert!(!set.covers(rect(0, 1, 3, 4)));
    }

    #[test]
    fn overlaps_strangers_and_empty_sets_are_refused() {
        assert_eq!(
            TileSet::new(GRID, vec![rect(0, 4, 0, 2), rect(3, 8, 1, 2)]),
            Err(WireError::Overlap(rect(3, 8, 1, 2)))
        );
        assert!(TileSet::new(GRID, vec![rect(0, 9, 0, 1)]).is_err());
        assert!(TileSet::new(GRID, vec![rect(3, 3, 0, 1)]).is_err());
        assert!(TileSet::new(GRID, Vec::new()).is_err());
        let reversed: Vec<u8> = [u32::MAX, 1, 0, 1].map(u32::to_le_bytes).concat();
        assert!(TileSet::decode(GRID, &reversed).is_err());
    }

    #[test]
    fn bytes_are_counted_before_they_are_read() {
        let set = TileSet::new(GRID, vec![rect(0, 4, 0, 2), rect(4, 8, 1, 3)]).expect("set");
        let bytes = set.encode();
        assert_eq!(bytes.len(), 2 * RECT_BYTES);
        assert_eq!(TileSet::decode(GRID, &bytes), Ok(set));
        assert_eq!(
            TileSet::decode(GRID, &bytes[1..]),
            Err(WireError::Rects(31))
        );
        let found = MAX_RECTS as u64 + 1;
        assert!(matches!(
            TileSet::decode(GRID, &bytes[..RECT_BYTES].repeat(MAX_RECTS + 1)),
            Err(WireError::Bound { found: f, .. }) if f == found
        ));
    }
}
