//! Rectangles that share no tile.

use super::{Grid, MAX_RECTS, Span, TileError, TileRect};

/// Disjoint rectangles inside a grid, at least one, in the order in which they were given.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TileSet {
    rects: Vec<TileRect>,
}

impl TileSet {
    /// A set of `rects`, which stay in their order.
    ///
    /// # Errors
    /// There are none or more than [`MAX_RECTS`], one is empty or outside of `grid`, or two share
    /// a tile.
    pub fn new(grid: Grid, rects: Vec<TileRect>) -> Result<Self, TileError> {
        if rects.is_empty() || rects.len() > MAX_RECTS {
            return Err(TileError::Count(rects.len()));
        }
        for (i, rect) in rects.iter().enumerate() {
            rect.check(grid)?;
            if rects[..i].iter().any(|other| shared(*rect, *other) > 0) {
                return Err(TileError::Overlap(*rect));
            }
        }
        Ok(TileSet { rects })
    }

    /// All of a grid.
    #[must_use]
    pub fn whole(grid: Grid) -> Self {
        TileSet {
            rects: vec![grid.whole()],
        }
    }

    /// The rectangles, in the order in which they were given.
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

    /// The rectangle that covers all of `rect` by itself.
    #[must_use]
    pub fn rect_around(&self, rect: TileRect) -> Option<TileRect> {
        self.rects.iter().copied().find(|held| held.covers(rect))
    }

    /// Number of tiles of all rectangles.
    #[must_use]
    pub fn tiles(&self) -> u64 {
        self.rects.iter().map(|rect| rect.tiles()).sum()
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
        assert_eq!(set.rect_around(rect(4, 6, 0, 1)), Some(rect(4, 8, 0, 2)));
        assert_eq!(set.rect_around(rect(2, 6, 0, 1)), None);
        assert_eq!(set.tiles(), 16);
    }

    #[test]
    fn overlaps_strangers_and_empty_sets_are_refused() {
        assert_eq!(
            TileSet::new(GRID, vec![rect(0, 4, 0, 2), rect(3, 8, 1, 2)]),
            Err(TileError::Overlap(rect(3, 8, 1, 2)))
        );
        assert!(TileSet::new(GRID, vec![rect(0, 9, 0, 1)]).is_err());
        assert!(TileSet::new(GRID, vec![rect(3, 3, 0, 1)]).is_err());
        assert_eq!(TileSet::new(GRID, Vec::new()), Err(TileError::Count(0)));
        let many = vec![rect(0, 1, 0, 1); MAX_RECTS + 1];
        assert_eq!(
            TileSet::new(GRID, many),
            Err(TileError::Count(MAX_RECTS + 1))
        );
    }
}
