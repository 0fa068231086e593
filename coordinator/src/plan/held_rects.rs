//! A layer's grid cut into rectangles in which every tile is held by the same nodes.

use ds4_common::tiles::{Grid, Span, TileRect};

/// A rectangle of which every tile is held by the same nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HeldRect {
    pub(super) rect: TileRect,
    /// Indices of the nodes that hold it, ascending; empty where none does.
    pub(super) nodes: Vec<usize>,
}

/// Cuts the grid along the borders of all rectangles, `held[node]` being those of a node, and
/// joins neighbours that the same nodes hold: first along the experts, then along the blocks. The
/// result covers every tile of the grid once.
pub(super) fn held_rects(grid: Grid, held: &[&[TileRect]]) -> Vec<HeldRect> {
    let borders = borders(
        grid.blocks,
        held.iter().copied().flatten().map(|r| r.blocks),
    );
    let mut done: Vec<HeldRect> = Vec::new();
    // The rectangles of the strip above, which may go on below.
    let mut open: Vec<HeldRect> = Vec::new();
    for strip in borders.windows(2) {
        let blocks = Span::new(strip[0], strip[1]);
        let row = row(grid, held, blocks);
        let same =
            |(a, b): (&HeldRect, &HeldRect)| a.rect.experts == b.rect.experts && a.nodes == b.nodes;
        if row.len() == open.len() && row.iter().zip(&open).all(same) {
            for above in &mut open {
                above.rect.blocks.end = blocks.end;
            }
        } else {
            done.append(&mut open);
            open = row;
        }
    }
    done.append(&mut open);
    done
}

/// A strip of blocks in which no rectangle begins or ends, cut along the experts.
fn row(grid: Grid, held: &[&[TileRect]], blocks: Span) -> Vec<HeldRect> {
    let here: Vec<(usize, Span)> = held
        .iter()
        .enumerate()
        .flat_map(|(node, rects)| rects.iter().map(move |rect| (node, rect)))
        .filter(|(_, rect)| rect.blocks.covers(blocks))
        .map(|(node, rect)| (node, rect.experts))
        .collect();
    let mut row: Vec<HeldRect> = Vec::new();
    for span in borders(grid.experts, here.iter().map(|(_, span)| *span)).windows(2) {
        let experts = Span::new(span[0], span[1]);
        let covers = here.iter().filter(|(_, held)| held.covers(experts));
        let mut nodes: Vec<usize> = covers.map(|(node, _)| *node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        match row.last_mut() {
            Some(last) if last.nodes == nodes => last.rect.experts.end = experts.end,
            _ => row.push(HeldRect {
                rect: TileRect { experts, blocks },
                nodes,
            }),
        }
    }
    row
}

/// Where spans begin and end on an axis of length `total`, and its two ends; ascending.
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
    fn the_rectangles_cover_the_grid_and_name_all_nodes() {
        let a = [rect(0, 8, 0, 2)];
        let b = [rect(0, 4, 1, 4), rect(4, 8, 3, 4)];
        let found = held_rects(GRID, &[&a, &b]);
        let held = |rect, nodes: &[usize]| HeldRect {
            rect,
            nodes: nodes.to_vec(),
        };
        assert_eq!(
            found,
            [
                held(rect(0, 8, 0, 1), &[0]),
                held(rect(0, 4, 1, 2), &[0, 1]),
                held(rect(4, 8, 1, 2), &[0]),
                held(rect(0, 4, 2, 3), &[1]),
                held(rect(4, 8, 2, 3), &[]),
                held(rect(0, 8, 3, 4), &[1]),
            ]
        );
        let tiles: u64 = found.iter().map(|p| p.rect.tiles()).sum();
        assert_eq!(tiles, GRID.whole().tiles());
        assert_eq!(held_rects(GRID, &[]), [held(GRID.whole(), &[])]);
    }
}
