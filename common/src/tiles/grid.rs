//! Spans, grids and rectangles of tiles.

use std::fmt;
use std::ops::Range;

/// Width of a tile along the expert's inner dimension: one Q8_K block of the down projection.
pub const BLOCK_WIDTH: usize = 256;

/// Most rectangles of a [`super::TileSet`]: bounds what a peer can make others store.
pub const MAX_RECTS: usize = 1024;

/// A half-open range of experts or blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// First position.
    pub start: u32,
    /// One past the last position.
    pub end: u32,
}

impl Span {
    /// The positions `start..end`.
    #[must_use]
    pub const fn new(start: u32, end: u32) -> Self {
        Span { start, end }
    }

    /// Number of positions; 0 if `end` does not follow `start`.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.end.saturating_sub(self.start)
    }

    /// Whether there is no position.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// Whether `value` is one of the positions.
    #[must_use]
    pub const fn contains(self, value: u32) -> bool {
        self.start <= value && value < self.end
    }

    /// Whether `other` lies inside of this span.
    #[must_use]
    pub const fn covers(self, other: Span) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

impl Span {
    /// The inner features of a span of blocks, in an expert that is `width` features wide: the last
    /// block of an expert may be narrow.
    #[must_use]
    pub fn features(self, width: usize) -> Range<usize> {
        let at = |block: u32| block as usize * BLOCK_WIDTH;
        at(self.start)..at(self.end).min(width)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// The size of a model's tile grid, the same in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Experts of a layer.
    pub experts: u32,
    /// Blocks of an expert's inner width, the last one possibly narrower.
    pub blocks: u32,
}

impl Grid {
    /// The grid of `experts` experts with `width` inner features each.
    #[must_use]
    pub fn of(experts: usize, width: usize) -> Self {
        Grid {
            experts: experts as u32,
            blocks: width.div_ceil(BLOCK_WIDTH) as u32,
        }
    }

    /// All tiles of a layer, as one rectangle.
    #[must_use]
    pub fn whole(self) -> TileRect {
        TileRect {
            experts: Span::new(0, self.experts),
            blocks: Span::new(0, self.blocks),
        }
    }

    /// Cuts the grid into groups of experts x strips of blocks, rectangles of nearly equal size, group
    /// after group.
    ///
    /// # Errors
    /// A factor is zero or larger than its axis.
    pub fn cut(self, groups: u32, strips: u32) -> Result<Vec<TileRect>, TileError> {
        if groups == 0 || strips == 0 || groups > self.experts || strips > self.blocks {
            return Err(TileError::Cut {
                groups,
                strips,
                grid: self,
            });
        }
        let mut rects = Vec::with_capacity((groups * strips) as usize);
        for g in 0..groups {
            for s in 0..strips {
                rects.push(TileRect {
                    experts: share(self.experts, groups, g),
                    blocks: share(self.blocks, strips, s),
                });
            }
        }
        Ok(rects)
    }

    /// Cuts the grid for `nodes` equal nodes: along the inner width as far as it goes, since that
    /// gives every node an equal share of every expert, and along the experts beyond.
    ///
    /// # Errors
    /// There are more nodes than the grid can be cut into.
    pub fn cut_for(self, nodes: u32) -> Result<Vec<TileRect>, TileError> {
        let strips = (1..=self.blocks.min(nodes))
            .rev()
            .find(|s| nodes.is_multiple_of(*s) && nodes / s <= self.experts)
            .ok_or(TileError::TooManyNodes { nodes, grid: self })?;
        self.cut(nodes / strips, strips)
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} experts x {} blocks", self.experts, self.blocks)
    }
}

/// The `index`-th of `parts` nearly equal contiguous shares of `0..total`.
fn share(total: u32, parts: u32, index: u32) -> Span {
    let at = |i: u32| (u64::from(total) * u64::from(i) / u64::from(parts)) as u32;
    Span::new(at(index), at(index + 1))
}

/// A rectangle of a layer's tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TileRect {
    /// Expert ids.
    pub experts: Span,
    /// Blocks of [`BLOCK_WIDTH`] inner features.
    pub blocks: Span,
}

impl TileRect {
    /// Refuses a rectangle that is not one of `grid`.
    ///
    /// # Errors
    /// The rectangle is empty or reaches outside of `grid`.
    pub fn check(self, grid: Grid) -> Result<(), TileError> {
        if self.experts.is_empty() || self.blocks.is_empty() || !grid.whole().covers(self) {
            return Err(TileError::Outside { rect: self, grid });
        }
        Ok(())
    }

    /// Number of tiles: experts x blocks.
    #[must_use]
    pub fn tiles(self) -> u64 {
        u64::from(self.experts.len()) * u64::from(self.blocks.len())
    }

    /// Whether `other` lies inside of this rectangle.
    #[must_use]
    pub fn covers(self, other: TileRect) -> bool {
        self.experts.covers(other.experts) && self.blocks.covers(other.blocks)
    }
}

impl fmt::Display for TileRect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "experts {} blocks {}", self.experts, self.blocks)
    }
}

/// A tile arrangement that does not fit the grid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TileError {
    /// A rectangle is empty or not inside of the grid.
    #[error("{rect} is empty, or reaches outside of the model's grid of {grid}")]
    Outside {
        /// The rectangle.
        rect: TileRect,
        /// The model's grid.
        grid: Grid,
    },
    /// A grid cannot be cut so.
    #[error("a grid of {grid} cannot be cut into {groups} expert groups x {strips} block strips")]
    Cut {
        /// Groups of experts.
        groups: u32,
        /// Strips of blocks.
        strips: u32,
        /// The model's grid.
        grid: Grid,
    },
    /// A grid has no cut for so many nodes.
    #[error("a grid of {grid} cannot be cut evenly for {nodes} nodes")]
    TooManyNodes {
        /// Number of nodes.
        nodes: u32,
        /// The model's grid.
        grid: Grid,
    },
    /// Rectangles do not cover the grid exactly.
    #[error("the tiles leave out or repeat block {block} from expert {expert} on")]
    Cover {
        /// Block of the first tile that is left out or repeated.
        block: u32,
        /// Expert of that tile.
        expert: u32,
    },
    /// A set without rectangles, or with more than [`MAX_RECTS`]; holds their number.
    #[error("{0} tile rectangles, expected 1 to {MAX_RECTS}")]
    Count(usize),
    /// A rectangle shares a tile with an earlier one; holds the later one.
    #[error("tiles {0} appear twice")]
    Overlap(TileRect),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_nodes_cut_the_inner_width_first() {
        let grid = Grid {
            experts: 256,
            blocks: 8,
        };
        let four = grid.cut_for(4).expect("cut");
        assert!(
            four.iter()
                .all(|r| r.experts.len() == 256 && r.blocks.len() == 2)
        );
        let sixteen = grid.cut_for(16).expect("cut");
        assert!(
            sixteen
                .iter()
                .all(|r| r.experts.len() == 128 && r.blocks.len() == 1)
        );
        assert!(
            Grid {
                experts: 2,
                blocks: 1
            }
            .cut_for(3)
            .is_err()
        );
    }
}
