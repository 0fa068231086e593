//! Who computes which tiles.

use ds4_common::tiles::{Grid, Span, TileError, TileRect, TileSet};

/// Tiles that cannot be shared out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignmentError {
    #[error("no expert node holds {}", list(.0))]
    Uncovered(Vec<TileRect>),
    #[error(transparent)]
    Tiles(#[from] TileError),
}

fn list(rects: &[TileRect]) -> String {
    let mut text: Vec<String> = rects.iter().take(8).map(ToString::to_string).collect();
    if rects.len() > text.len() {
        text.push(format!("{} more", rects.len() - text.len()));
    }
    text.join(", ")
}

/// Shares a layer's grid out among nodes that hold `held`, some of them possibly nothing: each tile
/// to exactly one node, a node possibly left without work. `cut` asks for expert groups x block
/// strips. Rectangles of a node are merged as far as they come from one that it holds: what a node
/// holds apart it computes apart.
///
/// Nodes that all hold everything get equal cuts. Otherwise the grid is cut along every border of
/// a held rectangle; a piece with several holders is cut again, once for each of them, and the
/// parts go to the least loaded.
///
/// # Errors
/// Tiles that nobody holds, by name, or a cut that the grid does not have.
pub fn assign(
    grid: Grid,
    held: &[Option<&TileSet>],
    cut: Option<(u32, u32)>,
) -> Result<Vec<Vec<TileRect>>, AssignmentError> {
    let pieces = match cut {
        Some((groups, strips)) => grid.cut(groups, strips)?,
        None if (0..held.len()).all(|node| covers(held, node, grid.whole())) => {
            grid.cut_for(held.len() as u32)?
        }
        None => vec![grid.whole()],
    };
    let cells = cells(grid, held, &pieces);
    let mut owned: Vec<(TileRect, Vec<usize>)> = cells
        .into_iter()
        .map(|cell| {
            (
                cell,
                (0..held.len()).filter(|&n| covers(held, n, cell)).collect(),
            )
        })
        .collect();
    let missing: Vec<TileRect> = owned
        .iter()
        .filter(|(_, holders)| holders.is_empty())
        .map(|(cell, _)| *cell)
        .collect();
    if !missing.is_empty() {
        return Err(AssignmentError::Uncovered(merge(missing)));
    }

    // Where there is no choice comes first, so that the choices can even it out.
    owned.sort_by_key(|(cell, holders)| (holders.len(), cell_key(cell)));
    let mut shares = vec![Vec::new(); held.len()];
    let mut load = vec![0u64; held.len()];
    for (cell, holders) in owned {
        let parts = if pieces.len() == 1 {
            holders.len() as u32
        } else {
            1
        };
        for part in split(cell, parts) {
            if let Some(&node) = holders.iter().min_by_key(|&&n| (load[n], n)) {
                load[node] += u64::from(part.experts.len()) * u64::from(part.blocks.len());
                shares[node].push(part);
            }
        }
    }
    Ok(shares
        .into_iter()
        .zip(held)
        .map(|(share, held)| merge_within(share, *held))
        .collect())
}

fn covers(held: &[Option<&TileSet>], node: usize, rect: TileRect) -> bool {
    held[node].is_some_and(|set| set.covers(rect))
}

/// Merges the rectangles that lie in one of `held`, for each of those.
fn merge_within(share: Vec<TileRect>, held: Option<&TileSet>) -> Vec<TileRect> {
    let held = held.map_or(&[][..], TileSet::rects);
    let mut merged: Vec<TileRect> = held
        .iter()
        .flat_map(|holder| {
            merge(
                share
                    .iter()
                    .copied()
                    .filter(|r| holder.covers(*r))
                    .collect(),
            )
        })
        .collect();
    merged.sort_by_key(cell_key);
    merged
}

fn cell_key(cell: &TileRect) -> [u32; 4] {
    [
        cell.blocks.start,
        cell.experts.start,
        cell.blocks.end,
        cell.experts.end,
    ]
}

/// `pieces` cut along all borders of held rectangles.
fn cells(grid: Grid, held: &[Option<&TileSet>], pieces: &[TileRect]) -> Vec<TileRect> {
    let borders = |total: u32, axis: &dyn Fn(&TileRect) -> Span| -> Vec<u32> {
        let rects = held.iter().flatten().flat_map(|set| set.rects());
        let mut at: Vec<u32> = rects.map(axis).flat_map(|s| [s.start, s.end]).collect();
        at.extend([0, total]);
        at.sort_unstable();
        at.dedup();
        at
    };
    let experts = borders(grid.experts, &|r| r.experts);
    let blocks = borders(grid.blocks, &|r| r.blocks);
    let mut cells = Vec::new();
    for piece in pieces {
        for e in inside(&experts, piece.experts) {
            cells.extend(
                inside(&blocks, piece.blocks).map(|blocks| TileRect { experts: e, blocks }),
            );
        }
    }
    cells
}

/// The spans between `borders` that lie in `span`, cut at its ends.
fn inside(borders: &[u32], span: Span) -> impl Iterator<Item = Span> {
    borders
        .windows(2)
        .map(move |w| Span::new(w[0].max(span.start), w[1].min(span.end)))
        .filter(|s| !s.is_empty())
}

/// Up to `parts` nearly equal parts, along the blocks as far as they go, else along the experts.
fn split(rect: TileRect, parts: u32) -> Vec<TileRect> {
    let along = |span: Span, parts: u32| -> Vec<Span> {
        let parts = parts.clamp(1, span.len());
        let at =
            |i: u32| span.start + (u64::from(span.len()) * u64::from(i) / u64::from(parts)) as u32;
        (0..parts).map(|i| Span::new(at(i), at(i + 1))).collect()
    };
    if rect.blocks.len() >= parts {
        let strips = along(rect.blocks, parts);
        strips
            .into_iter()
            .map(|blocks| TileRect { blocks, ..rect })
            .collect()
    } else {
        let groups = along(rect.experts, parts);
        groups
            .into_iter()
            .map(|experts| TileRect { experts, ..rect })
            .collect()
    }
}

/// Joins rectangles that share a whole side until none do; sorted. In sorted order those that can
/// be joined along an axis are neighbours, and a pass along one axis may allow joins along the
/// other.
fn merge(mut rects: Vec<TileRect>) -> Vec<TileRect> {
    loop {
        let before = rects.len();
        rects.sort_by_key(|r| (r.experts, r.blocks));
        rects.dedup_by(|next, last| {
            let joins = next.experts == last.experts && last.blocks.end == next.blocks.start;
            if joins {
                last.blocks.end = next.blocks.end;
            }
            joins
        });
        rects.sort_by_key(|r| (r.blocks, r.experts));
        rects.dedup_by(|next, last| {
            let joins = next.blocks == last.blocks && last.experts.end == next.experts.start;
            if joins {
                last.experts.end = next.experts.end;
            }
            joins
        });
        if rects.len() == before {
            break;
        }
    }
    rects.sort_by_key(cell_key);
    rects
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GRID: Grid = Grid {
        experts: 12,
        blocks: 5,
    };

    fn set(rects: Vec<TileRect>) -> TileSet {
        TileSet::new(GRID, rects).expect("tiles")
    }

    fn rect(e0: u32, e1: u32, b0: u32, b1: u32) -> TileRect {
        TileRect {
            experts: Span::new(e0, e1),
            blocks: Span::new(b0, b1),
        }
    }

    fn area(rects: &[TileRect]) -> u32 {
        rects.iter().map(|r| r.experts.len() * r.blocks.len()).sum()
    }

    /// How often each tile is given out.
    fn counts(shares: &[Vec<TileRect>]) -> Vec<usize> {
        let tiles = (0..GRID.blocks).flat_map(|b| (0..GRID.experts).map(move |e| (e, b)));
        let within =
            |r: &&TileRect, (e, b): (u32, u32)| r.experts.contains(e) && r.blocks.contains(b);
        tiles
            .map(|tile| shares.iter().flatten().filter(|r| within(r, tile)).count())
            .collect()
    }

    /// Random rectangles, later ones left out where they overlap earlier ones.
    fn any_set() -> impl Strategy<Value = TileSet> {
        let span =
            |total: u32| (0..total).prop_flat_map(move |start| (Just(start), start + 1..=total));
        prop::collection::vec((span(GRID.experts), span(GRID.blocks)), 1..5).prop_map(|raw| {
            let mut kept = Vec::new();
            for ((e0, e1), (b0, b1)) in raw {
                kept.push(rect(e0, e1, b0, b1));
                if TileSet::new(GRID, kept.clone()).is_err() {
                    kept.pop();
                }
            }
            set(kept)
        })
    }

    proptest! {
        #[test]
        fn shares_are_an_exact_cover_of_held_tiles(
            mut held in prop::collection::vec(any_set(), 1..6),
            with_whole in any::<bool>(),
            cut in prop::option::of((1u32..=12, 1u32..=5)),
        ) {
            if with_whole {
                held.push(set(vec![GRID.whole()]));
            }
            let sets: Vec<_> = held.iter().map(Some).collect();
            match assign(GRID, &sets, cut) {
                Ok(shares) => {
                    prop_assert_eq!(shares.len(), held.len());
                    prop_assert!(counts(&shares).iter().all(|&n| n == 1));
                    for (share, held) in shares.iter().zip(&held) {
                        prop_assert!(share.iter().all(|r| held.holder(*r).is_some()));
                    }
                }
                Err(AssignmentError::Uncovered(missing)) => {
                    let all: Vec<Vec<TileRect>> = held.iter().map(|h| h.rects().to_vec()).collect();
                    let absent = counts(&all).iter().filter(|&&n| n == 0).count();
                    prop_assert_eq!(area(&missing) as usize, absent);
                    prop_assert!(absent > 0);
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }

    #[test]
    fn equal_nodes_get_equal_cuts() {
        let whole = set(vec![GRID.whole()]);
        let held = vec![Some(&whole); 5];
        let shares = assign(GRID, &held, None).expect("shares");
        assert!(shares.iter().all(|s| s.len() == 1 && area(s) == 12));
        let by_grid = assign(GRID, &held[..4], Some((4, 1))).expect("shares");
        assert!(
            by_grid
                .iter()
                .all(|s| s.len() == 1 && s[0].blocks.len() == 5)
        );
        assert!(assign(GRID, &held, Some((1, 6))).is_err());
    }

    #[test]
    fn replicas_share_what_they_both_hold() {
        let low = set(vec![rect(0, 12, 0, 2)]);
        let high = set(vec![rect(0, 12, 2, 5)]);
        let held = [Some(&low), Some(&low), Some(&high), Some(&high), None];
        let shares = assign(GRID, &held, None).expect("shares");
        let areas: Vec<u32> = shares.iter().map(|s| area(s)).collect();
        assert_eq!(areas, [12, 12, 12, 24, 0]);
        assert!(shares.iter().all(|s| s.len() <= 1));
    }

    #[test]
    fn many_small_tiles_are_merged_quickly() {
        // Single tiles in scattered order, with a hole that keeps the result from being one.
        let (experts, blocks) = (256u32, 64u32);
        let count = experts * blocks;
        let tiles = (0..count).map(|i| i * 5 % count).filter(|&i| i != 0);
        let rects = tiles.map(|i| {
            let (e, b) = (i / blocks, i % blocks);
            rect(e, e + 1, b, b + 1)
        });
        let start = std::time::Instant::now();
        let merged = merge(rects.collect());
        assert_eq!(merged, [rect(1, 256, 0, 64), rect(0, 1, 1, 64)]);
        assert!(start.elapsed().as_secs() < 2, "{:?}", start.elapsed());
    }

    #[test]
    fn missing_tiles_are_named_and_merged() {
        let held = [set(vec![rect(0, 12, 0, 4)]), set(vec![rect(0, 6, 4, 5)])];
        let error = assign(GRID, &held.each_ref().map(Some), None).expect_err("not covered");
        assert_eq!(error, AssignmentError::Uncovered(vec![rect(6, 12, 4, 5)]));
        assert_eq!(
            error.to_string(),
            "no expert node holds experts 6..12 blocks 4..5"
        );
    }
}
