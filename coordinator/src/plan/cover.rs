//! Who holds what of a layer, as rectangles in which every tile has the same holders.

use ds4_common::tiles::{Grid, Span, TileRect};

/// A rectangle and who holds all of it; nobody else holds any of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub rect: TileRect,
    /// Positions in the list of holders, ascending.
    pub holders: Vec<usize>,
}

/// Cuts the grid along the borders of everybody's rectangles (those of one holder are disjoint),
/// and joins neighbours with equal holders along the experts, then along the blocks.
#[must_use]
pub fn pieces(grid: Grid, held: &[&[TileRect]]) -> Vec<Piece> {
    let borders = borders(
        grid.blocks,
        held.iter().copied().flatten().map(|r| r.blocks),
    );
    let mut done: Vec<Piece> = Vec::new();
    // The pieces of the strip above, which may go on below.
    let mut open: Vec<Piece> = Vec::new();
    for strip in borders.windows(2) {
        let blocks = Span::new(strip[0], strip[1]);
        let row = row(grid, held, blocks);
        let same =
            |(a, b): (&Piece, &Piece)| a.rect.experts == b.rect.experts && a.holders == b.holders;
        if row.len() == open.len() && row.iter().zip(&open).all(same) {
            for piece in &mut open {
                piece.rect.blocks.end = blocks.end;
            }
        } else {
            done.append(&mut open);
            open = row;
        }
    }
    done.append(&mut open);
    done
}

/// The pieces of a strip of blocks in which no rectangle begins or ends.
fn row(grid: Grid, held: &[&[TileRect]], blocks: Span) -> Vec<Piece> {
    let here: Vec<(usize, Span)> = held
        .iter()
        .enumerate()
        .flat_map(|(holder, rects)| rects.iter().map(move |rect| (holder, rect)))
        .filter(|(_, rect)| rect.blocks.covers(blocks))
        .map(|(holder, rect)| (holder, rect.experts))
        .collect();
    let mut row: Vec<Piece> = Vec::new();
    for span in borders(grid.experts, here.iter().map(|(_, span)| *span)).windows(2) {
        let experts = Span::new(span[0], span[1]);
        let covers = here.iter().filter(|(_, held)| held.covers(experts));
        let mut holders: Vec<usize> = covers.map(|(holder, _)| *holder).collect();
        holders.sort_unstable();
        match row.last_mut() {
            Some(last) if last.holders == holders => last.rect.experts.end = experts.end,
            _ => row.push(Piece {
                rect: TileRect { experts, blocks },
                holders,
            }),
        }
    }
    row
}

/// Where the spans begin and end, and the ends of the axis; ascending.
fn borders(total: u32, spans: impl Iterator<Item = Span>) -> Vec<u32> {
    let mut at: Vec<u32> = spans.flat_map(|s| [s.start, s.end]).collect();
    at.extend([0, total]);
    at.sort_unstable();
    at.dedup();
    at
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
    fn pieces_are_a_cover_with_all_holders() {
        let a = [rect(0, 8, 0, 2)];
        let b = [rect(0, 4, 1, 4), rect(4, 8, 3, 4)];
        let found = pieces(GRID, &[&a, &b]);
        let piece = |rect, holders: &[usize]| Piece {
            rect,
            holders: holders.to_vec(),
        };
        assert_eq!(
            found,
            [
                piece(rect(0, 8, 0, 1), &[0]),
                piece(rect(0, 4, 1, 2), &[0, 1]),
                piece(rect(4, 8, 1, 2), &[0]),
                piece(rect(0, 4, 2, 3), &[1]),
                piece(rect(4, 8, 2, 3), &[]),
                piece(rect(0, 8, 3, 4), &[1]),
            ]
        );
        let tiles: u64 = found.iter().map(|p| p.rect.tiles()).sum();
        assert_eq!(tiles, GRID.whole().tiles());
        assert_eq!(pieces(GRID, &[]), [piece(GRID.whole(), &[])]);
    }
}
