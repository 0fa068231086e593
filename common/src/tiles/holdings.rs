//! Which tiles are held, layer by layer.

use std::ops::Range;
use std::sync::Arc;

use super::{Grid, TileError, TileRect, TileSet};

/// The tiles of every layer that a node, a file or a plan's machine holds. A layer may be empty.
/// Cheap to clone: layers in a row that hold the same share one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdings {
    grid: Grid,
    layers: Vec<Option<Arc<TileSet>>>,
}

impl Holdings {
    /// `rects[l]` are the tiles of layer `l`, possibly none.
    ///
    /// # Errors
    /// The rectangles of a layer do not form a [`TileSet`].
    pub fn new(grid: Grid, rects: Vec<Vec<TileRect>>) -> Result<Self, TileError> {
        let set = |rects: Vec<TileRect>| match rects.is_empty() {
            true => Ok(None),
            false => TileSet::new(grid, rects).map(Some),
        };
        let sets = rects
            .into_iter()
            .map(set)
            .collect::<Result<_, TileError>>()?;
        Ok(Self::of_layers(grid, sets))
    }

    /// `sets[l]` are the tiles of layer `l`, all of them inside `grid`.
    #[must_use]
    pub fn of_layers(grid: Grid, sets: Vec<Option<TileSet>>) -> Self {
        let mut layers: Vec<Option<Arc<TileSet>>> = Vec::with_capacity(sets.len());
        for set in sets {
            let same = layers.last().and_then(Option::as_ref);
            let set = match (same, set) {
                (Some(last), Some(set)) if **last == set => Some(Arc::clone(last)),
                (_, set) => set.map(Arc::new),
            };
            layers.push(set);
        }
        Holdings { grid, layers }
    }

    /// The same tiles in each of `layers` layers.
    #[must_use]
    pub fn uniform(grid: Grid, layers: usize, tiles: TileSet) -> Self {
        Holdings {
            grid,
            layers: vec![Some(Arc::new(tiles)); layers],
        }
    }

    /// Grid of every layer.
    #[must_use]
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// Layers of the model, held or not.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The tiles of one layer; `None` if there are none, or no such layer.
    #[must_use]
    pub fn layer(&self, layer: usize) -> Option<&Arc<TileSet>> {
        self.layers.get(layer)?.as_ref()
    }

    /// The rectangles of one layer, possibly none.
    #[must_use]
    pub fn rects(&self, layer: usize) -> &[TileRect] {
        self.layer(layer).map_or(&[], |set| set.rects())
    }

    /// Whether every tile of `rect` is held in `layer`.
    #[must_use]
    pub fn covers(&self, layer: usize, rect: TileRect) -> bool {
        self.layer(layer).is_some_and(|set| set.covers(rect))
    }

    /// Layers in a row that hold the same, in order and without gaps.
    pub fn runs(&self) -> impl Iterator<Item = (Range<usize>, Option<&Arc<TileSet>>)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let first = self.layers.get(at)?;
            let same = self.layers[at..].iter().take_while(|set| *set == first);
            let run = at..at + same.count();
            at = run.end;
            Some((run, first.as_ref()))
        })
    }

    /// Number of tiles in all layers.
    #[must_use]
    pub fn tiles(&self) -> u64 {
        self.layers.iter().flatten().map(|set| set.tiles()).sum()
    }

    /// The tiles of each layer, where all layers hold the same.
    #[must_use]
    pub fn same_in_all_layers(&self) -> Option<&Arc<TileSet>> {
        let mut runs = self.runs();
        match (runs.next(), runs.next()) {
            (Some((_, tiles)), None) => tiles,
            _ => None,
        }
    }

    /// Whether no layer has a tile.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.layers.iter().all(Option::is_none)
    }
}

impl std::fmt::Display for Holdings {
    /// For messages: `experts 0..256 blocks 0..2`, or with `layers 0..20: ` before each run.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |set: Option<&Arc<TileSet>>| {
            let texts: Vec<String> = set.map_or_else(Vec::new, |set| {
                set.rects().iter().map(ToString::to_string).collect()
            });
            if texts.is_empty() {
                "nothing".to_owned()
            } else {
                texts.join(", ")
            }
        };
        for (i, (layers, set)) in self.runs().enumerate() {
            if layers.len() == self.layers.len() {
                return f.write_str(&list(set));
            }
            let gap = if i == 0 { "" } else { "; " };
            let (start, end) = (layers.start, layers.end);
            write!(f, "{gap}layers {start}..{end}: {}", list(set))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid {
        experts: 8,
        blocks: 4,
    };

    #[test]
    fn layers_in_a_row_share_a_set_and_show_as_one() {
        let halves = GRID.cut(1, 2).expect("cut");
        let low = vec![halves[0]];
        let all = vec![low.clone(), low.clone(), Vec::new(), halves.clone(), low];
        let held = Holdings::new(GRID, all).expect("holdings");
        let runs: Vec<_> = held.runs().map(|(run, _)| run).collect();
        assert_eq!(runs, [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(held.tiles(), 16 + 16 + 32 + 16);
        assert!(held.covers(3, GRID.whole()) && !held.covers(0, GRID.whole()));
        assert!(!held.covers(2, halves[0]) && !held.covers(9, halves[0]));
        assert_eq!(
            held.to_string(),
            "layers 0..2: experts 0..8 blocks 0..2; layers 2..3: nothing; layers 3..4: \
             experts 0..8 blocks 0..2, experts 0..8 blocks 2..4; layers 4..5: experts 0..8 blocks \
             0..2"
        );
        let uniform = Holdings::uniform(GRID, 3, TileSet::whole(GRID));
        assert_eq!(uniform.to_string(), "experts 0..8 blocks 0..4");
        let twice = vec![vec![GRID.whole(), halves[0]]];
        assert!(Holdings::new(GRID, twice).is_err());
    }
}
