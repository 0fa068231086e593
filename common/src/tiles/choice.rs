//! Which tiles a node is to hold, as flags and plan files say it before a model is opened.

use std::str::FromStr;

use super::{Grid, Span, TileError, TileRect, TileSet};

/// A choice of tiles that is resolved once the model's grid is known.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum TileChoice {
    /// The whole grid.
    #[default]
    All,
    /// Rectangles as (experts, blocks), at least one; an axis that is `None` is held whole.
    Rects(Vec<(Option<Span>, Option<Span>)>),
    /// One part of the grid cut into groups x strips.
    Part {
        /// How the grid is cut.
        cut: GridCut,
        /// The part, from 0 to groups x strips - 1, group after group.
        index: usize,
    },
    /// Rectangles of a grid that is known already, at least one.
    Exact(Vec<TileRect>),
}

/// A cut of the grid into expert groups x block strips, written `ExB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridCut {
    /// Parts along the expert axis, at least 1.
    pub groups: u32,
    /// Parts along the axis of inner blocks, at least 1.
    pub strips: u32,
}

/// Why a choice of tiles is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    /// Not a range of experts or blocks: the text.
    #[error("invalid range '{0}': expected START..END with START below END")]
    Range(String),
    /// Not an axis with a range: the text.
    #[error("invalid tiles '{0}': expected experts=START..END or blocks=START..END")]
    Axis(String),
    /// A rectangle that gives an axis twice: its text.
    #[error("invalid tiles '{0}': an axis is given twice")]
    Twice(String),
    /// Not a cut of a grid: the text.
    #[error("invalid grid '{0}': expected GROUPSxSTRIPS, for example 2x4")]
    Cut(String),
    /// A part beyond the last one.
    #[error("part {index} of a grid of {parts} parts does not exist: parts count from 0")]
    Index {
        /// The part that was chosen.
        index: usize,
        /// How many parts the cut has.
        parts: usize,
    },
    /// The tiles do not fit the model's grid.
    #[error(transparent)]
    Tiles(#[from] TileError),
}

impl TileChoice {
    /// The chosen tiles of a model with this grid.
    ///
    /// # Errors
    /// The tiles lie outside of the grid or overlap, or the part does not exist.
    pub fn resolve(&self, grid: Grid) -> Result<TileSet, ChoiceError> {
        let whole = grid.whole();
        let rects = match self {
            TileChoice::All => vec![whole],
            TileChoice::Rects(parts) => parts
                .iter()
                .map(|(experts, blocks)| TileRect {
                    experts: experts.unwrap_or(whole.experts),
                    blocks: blocks.unwrap_or(whole.blocks),
                })
                .collect(),
            TileChoice::Part { cut, index } => {
                let rects = grid.cut(cut.groups, cut.strips)?;
                let rect = rects.get(*index).ok_or(ChoiceError::Index {
                    index: *index,
                    parts: rects.len(),
                })?;
                vec![*rect]
            }
            TileChoice::Exact(rects) => rects.clone(),
        };
        Ok(TileSet::new(grid, rects)?)
    }
}

impl FromStr for TileChoice {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<Self, ChoiceError> {
        if text.trim() == "all" {
            return Ok(TileChoice::All);
        }
        let rects: Result<Vec<_>, _> = text.split('+').map(parse_rect).collect();
        Ok(TileChoice::Rects(rects?))
    }
}

impl FromStr for GridCut {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<Self, ChoiceError> {
        let parsed = text
            .split_once(['x', 'X'])
            .and_then(|(groups, strips)| Some((groups.parse().ok()?, strips.parse().ok()?)));
        match parsed {
            Some((groups, strips)) if groups > 0 && strips > 0 => Ok(GridCut { groups, strips }),
            _ => Err(ChoiceError::Cut(text.to_owned())),
        }
    }
}

fn parse_rect(text: &str) -> Result<(Option<Span>, Option<Span>), ChoiceError> {
    let (mut experts, mut blocks) = (None, None);
    for part in text.split(',') {
        let (axis, range) = part
            .trim()
            .split_once('=')
            .ok_or_else(|| ChoiceError::Axis(part.to_owned()))?;
        let slot = match axis {
            "experts" => &mut experts,
            "blocks" => &mut blocks,
            _ => return Err(ChoiceError::Axis(part.to_owned())),
        };
        if slot.replace(parse_span(range)?).is_some() {
            return Err(ChoiceError::Twice(text.to_owned()));
        }
    }
    Ok((experts, blocks))
}

fn parse_span(text: &str) -> Result<Span, ChoiceError> {
    let parsed = text
        .split_once("..")
        .and_then(|(start, end)| Some(Span::new(start.parse().ok()?, end.parse().ok()?)));
    match parsed {
        Some(span) if !span.is_empty() => Ok(span),
        _ => Err(ChoiceError::Range(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid {
        experts: 256,
        blocks: 8,
    };

    fn resolve(text: &str) -> Result<TileSet, ChoiceError> {
        text.parse::<TileChoice>()?.resolve(GRID)
    }

    #[test]
    fn axes_left_out_are_whole() {
        assert_eq!(resolve("all").expect("all").rects(), &[GRID.whole()]);
        let half = resolve("blocks=0..4").expect("half");
        assert_eq!(half.rects()[0].experts, Span::new(0, 256));
        assert_eq!(half.rects()[0].blocks, Span::new(0, 4));
        let two = resolve("experts=0..8,blocks=2..3+experts=8..16").expect("two");
        assert_eq!(two.rects().len(), 2);
    }

    #[test]
    fn nonsense_is_named() {
        for bad in [
            "",
            "experts",
            "experts=4..4",
            "experts=a..b",
            "layers=0..1",
            "blocks=-1..2",
            "experts=0..1,experts=1..2",
        ] {
            assert!(bad.parse::<TileChoice>().is_err(), "{bad}");
        }
        assert!(resolve("experts=0..257").is_err());
        assert!(resolve("experts=0..2+experts=1..3").is_err());
        for bad in ["", "2", "2x", "0x4", "axb", "2x4x2"] {
            assert!(bad.parse::<GridCut>().is_err(), "{bad}");
        }
    }

    #[test]
    fn parts_of_a_grid_count_from_zero() {
        let cut: GridCut = "2x4".parse().expect("cut");
        let part = |index| TileChoice::Part { cut, index }.resolve(GRID);
        assert_eq!(
            part(7).expect("last part").rects(),
            &GRID.cut(2, 4).expect("cut")[7..]
        );
        assert_eq!(part(8), Err(ChoiceError::Index { index: 8, parts: 8 }));
    }
}
