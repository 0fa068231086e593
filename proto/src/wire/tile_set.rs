//! Rectangles that share no tile.

use ds4_common::tiles::{Grid, Span, TileRect};

use super::{WireError, bound};
use crate::limits::MAX_RECTS;
use crate::pb;

/// Disjoint rectangles inside a grid, in the order in which they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileSet {
    rects: Vec<TileRect>,
}

impl TileSet {
    /// # Errors
    /// There are none or too many, one is empty or outside of `grid`, or two share a tile.
    pub fn new(grid: Grid, rects: Vec<TileRect>) -> Result<Self, WireError> {
        bound(
            "the number of tile rectangles",
            rects.len() as u64,
            1,
            MAX_RECTS as u64,
        )?;
        for (i, rect) in rects.iter().enumerate() {
            rect.check(grid)?;
            if rects[..i].iter().any(|other| shared(*rect, *other) > 0) {
                return Err(WireError::Overlap(*rect));
            }
        }
        Ok(TileSet { rects })
    }

    /// # Errors
    /// As for [`TileSet::new`].
    pub fn decode(grid: Grid, rects: &[pb::TileRect]) -> Result<Self, WireError> {
        bound(
            "the number of tile rectangles",
            rects.len() as u64,
            1,
            MAX_RECTS as u64,
        )?;
        let rects = rects
            .iter()
            .map(|r| TileRect {
                experts: Span::new(r.expert_start, r.expert_end),
                blocks: Span::new(r.block_start, r.block_end),
            })
            .collect();
        Self::new(grid, rects)
    }

    #[must_use]
    pub fn encode(&self) -> Vec<pb::TileRect> {
        let encode = |rect: &TileRect| pb::TileRect {
            expert_start: rect.experts.start,
            expert_end: rect.experts.end,
            block_start: rect.blocks.start,
            block_end: rect.blocks.end,
        };
        self.rects.iter().map(encode).collect()
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
        let reversed = pb::TileRect {
            expert_start: u32::MAX,
            expert_end: 1,
            block_start: 0,
            block_end: 1,
        };
        assert!(TileSet::decode(GRID, &[reversed]).is_err());
    }
}
