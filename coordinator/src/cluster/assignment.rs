//! Who computes which tiles of a layer.

use ds4_common::tiles::{Grid, Span, TileError, TileRect, TileSet};

/// Rectangles that a message shows.
const SHOWN: usize = 8;

/// Some rectangles for a person.
pub(super) fn list(rects: &[TileRect]) -> String {
    let mut text: Vec<String> = rects.iter().take(SHOWN).map(ToString::to_string).collect();
    if rects.len() > text.len() {
        text.push(format!("{} more", rects.len() - text.len()));
    }
    text.join(", ")
}

/// Somebody who may compute tiles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder<'a> {
    /// What it holds of the layer.
    pub(super) tiles: Option<&'a TileSet>,
    /// A tile goes to a holder of the lowest tier that holds it.
    pub(super) tier: u8,
    /// Its part of what it holds together with others of its tier, at least 1.
    pub(super) weight: u32,
}

/// Who computes what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    /// Of each holder, possibly nothing.
    pub(super) of: Vec<Vec<TileRect>>,
    /// What nobody holds.
    pub(super) missing: Vec<TileRect>,
    /// The most maximal subtrees that a rectangle has which all holders hold or do not hold as a
    /// whole.
    pub(super) most_subtrees: usize,
}

/// Shares a layer's grid out: each tile to exactly one holder. Rectangles of a holder are merged
/// as far as they come from one that it holds: what a node holds apart it computes apart. `cut`
/// asks for expert groups x block strips.
///
/// Equal nodes that all hold everything get equal cuts. Otherwise the grid is cut along every
/// border of a held rectangle, and a piece with several holders is cut again, by their weights.
///
/// # Errors
/// The grid has no such cut.
pub(super) fn share_out(
    grid: Grid,
    holders: &[Holder<'_>],
    cut: Option<(u32, u32)>,
) -> Result<Shares, TileError> {
    let pieces = match cut {
        Some((groups, strips)) => grid.cut(groups, strips)?,
        None => equal_cuts(grid, holders).unwrap_or_else(|| vec![grid.whole()]),
    };
    let cells = cells(grid, holders, &pieces);
    let subtrees = cells.iter().map(|cell| cell.subtrees(grid).len());
    let most_subtrees = subtrees.max().unwrap_or(0);
    let mut owned: Vec<(TileRect, Vec<usize>)> = cells
        .into_iter()
        .map(|cell| (cell, best(holders, cell)))
        .collect();
    // Where there is no choice comes first, so that the choices can even it out.
    owned.sort_by_key(|(cell, holders)| (holders.len(), cell_key(cell)));
    let mut of = vec![Vec::new(); holders.len()];
    let mut missing = Vec::new();
    let mut loads = Loads::new(holders);
    for (cell, candidates) in owned {
        if candidates.is_empty() {
            missing.push(cell);
        } else if pieces.len() > 1 {
            of[loads.least(&candidates, cell.tiles())].push(cell);
        } else {
            for (holder, part) in loads.split(&candidates, cell) {
                of[holder].push(part);
            }
        }
    }
    let of = of
        .into_iter()
        .zip(holders)
        .map(|(share, holder)| merge_within(share, holder.tiles));
    Ok(Shares {
        of: of.collect(),
        missing: merge(missing),
        most_subtrees,
    })
}

/// What none of `held` holds of the grid, merged.
#[must_use]
pub(super) fn uncovered(grid: Grid, held: &[Option<&TileSet>]) -> Vec<TileRect> {
    let holders: Vec<Holder<'_>> = held.iter().copied().map(held_by).collect();
    let cells = cells(grid, &holders, &[grid.whole()]);
    let missing = cells
        .into_iter()
        .filter(|cell| best(&holders, *cell).is_empty());
    merge(missing.collect())
}

fn held_by(tiles: Option<&TileSet>) -> Holder<'_> {
    Holder {
        tiles,
        tier: 0,
        weight: 1,
    }
}

/// For each of `rects`, its parts along the borders of what `holders` hold, each with the holders
/// of the lowest tier that hold it.
pub(super) fn parts(
    grid: Grid,
    holders: &[Holder<'_>],
    rects: &[TileRect],
) -> Vec<(TileRect, Vec<usize>)> {
    let cells = cells(grid, holders, rects);
    cells
        .into_iter()
        .map(|cell| (cell, best(holders, cell)))
        .collect()
}

/// Equal cuts for the holders of the lowest tier, if they are alike and hold everything.
fn equal_cuts(grid: Grid, holders: &[Holder<'_>]) -> Option<Vec<TileRect>> {
    let tier = holders.iter().map(|h| h.tier).min()?;
    let mut peers = holders.iter().filter(|h| h.tier == tier);
    let first = peers.clone().next()?;
    let whole = |h: &Holder<'_>| h.tiles.is_some_and(|t| t.holder(grid.whole()).is_some());
    let alike = peers.all(|h| whole(h) && h.weight == first.weight);
    let count = holders.iter().filter(|h| h.tier == tier).count();
    alike.then(|| grid.cut_for(count as u32).ok())?
}

/// The holders of the lowest tier that hold `cell` in one piece.
fn best(holders: &[Holder<'_>], cell: TileRect) -> Vec<usize> {
    let holds = |h: &Holder<'_>| h.tiles.is_some_and(|tiles| tiles.holder(cell).is_some());
    let tier = holders.iter().filter(|h| holds(h)).map(|h| h.tier).min();
    let chosen = |h: &Holder<'_>| Some(h.tier) == tier && holds(h);
    let all = 0..holders.len();
    all.filter(|&i| chosen(&holders[i])).collect()
}

/// Tiles given to each holder so far.
struct Loads<'a> {
    holders: &'a [Holder<'a>],
    tiles: Vec<u64>,
}

impl<'a> Loads<'a> {
    fn new(holders: &'a [Holder<'a>]) -> Self {
        Loads {
            holders,
            tiles: vec![0; holders.len()],
        }
    }

    /// Gives `tiles` more to the one of `candidates` that has least for its weight then.
    fn least(&mut self, candidates: &[usize], tiles: u64) -> usize {
        let after = |&i: &usize| {
            let weight = u64::from(self.holders[i].weight.max(1));
            // Fractions of small numbers, compared without rounding.
            ((self.tiles[i] + tiles) * 840 / weight, i)
        };
        let chosen = candidates.iter().copied().min_by_key(after).unwrap_or(0);
        self.tiles[chosen] += tiles;
        chosen
    }

    /// Cuts a cell for its holders: along the blocks as far as they go, since that leaves few
    /// subtrees, else along the experts.
    fn split(&mut self, candidates: &[usize], cell: TileRect) -> Vec<(usize, TileRect)> {
        let by_blocks = cell.blocks.len() as usize >= candidates.len();
        let axis = if by_blocks { cell.blocks } else { cell.experts };
        let units = match by_blocks {
            true => axis.len(),
            false => axis.len().min(candidates.len() as u32),
        };
        let border = |unit: u32| {
            axis.start + (u64::from(axis.len()) * u64::from(unit) / u64::from(units)) as u32
        };
        let mut counts = vec![0; candidates.len()];
        for unit in 0..units {
            let tiles =
                cell.tiles() * u64::from(border(unit + 1) - border(unit)) / u64::from(axis.len());
            let chosen = self.least(candidates, tiles);
            if let Some(at) = candidates.iter().position(|&i| i == chosen) {
                counts[at] += 1;
            }
        }
        let mut next = 0;
        let mut parts = Vec::new();
        for (&holder, count) in candidates.iter().zip(counts).filter(|(_, n)| *n > 0) {
            let span = Span::new(border(next), border(next + count));
            next += count;
            let part = match by_blocks {
                true => TileRect {
                    blocks: span,
                    ..cell
                },
                false => TileRect {
                    experts: span,
                    ..cell
                },
            };
            parts.push((holder, part));
        }
        parts
    }
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
fn cells(grid: Grid, holders: &[Holder<'_>], pieces: &[TileRect]) -> Vec<TileRect> {
    let borders = |total: u32, axis: &dyn Fn(&TileRect) -> Span| -> Vec<u32> {
        let rects = holders
            .iter()
            .filter_map(|h| h.tiles)
            .flat_map(|set| set.rects());
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
            tiers in prop::collection::vec(0u8..3, 1..6),
            weights in prop::collection::vec(1u32..9, 1..6),
            cut in prop::option::of((1u32..=12, 1u32..=5)),
        ) {
            if with_whole {
                held.push(set(vec![GRID.whole()]));
            }
            let holders: Vec<_> = held
                .iter()
                .enumerate()
                .map(|(i, tiles)| Holder {
                    tiles: Some(tiles),
                    tier: tiers[i % tiers.len()],
                    weight: weights[i % weights.len()],
                })
                .collect();
            let shares = share_out(GRID, &holders, cut).expect("a legal cut");
            prop_assert_eq!(shares.of.len(), held.len());
            for (share, held) in shares.of.iter().zip(&held) {
                prop_assert!(share.iter().all(|r| held.holder(*r).is_some()));
            }
            let all: Vec<Vec<TileRect>> = held.iter().map(|h| h.rects().to_vec()).collect();
            let absent = counts(&all).iter().filter(|&&n| n == 0).count();
            prop_assert_eq!(area(&shares.missing) as usize, absent);
            let sets: Vec<_> = held.iter().map(Some).collect();
            prop_assert_eq!(&shares.missing, &uncovered(GRID, &sets));
            let mut given = shares.of.clone();
            given.push(shares.missing);
            prop_assert!(counts(&given).iter().all(|&n| n == 1));
            // A tile is never with a holder of a higher tier than another who holds it.
            for (i, share) in shares.of.iter().enumerate() {
                for (j, other) in held.iter().enumerate().filter(|(j, _)| holders[*j].tier < holders[i].tier) {
                    prop_assert!(share.iter().all(|r| other.holder(*r).is_none()), "{i} {j}");
                }
            }
        }
    }

    fn shares(held: &[Option<&TileSet>], cut: Option<(u32, u32)>) -> Vec<Vec<TileRect>> {
        let holders: Vec<_> = held.iter().map(|tiles| held_by(*tiles)).collect();
        let shares = share_out(GRID, &holders, cut).expect("a legal cut");
        assert!(shares.missing.is_empty());
        shares.of
    }

    #[test]
    fn equal_nodes_get_equal_cuts() {
        let whole = set(vec![GRID.whole()]);
        let held = vec![Some(&whole); 5];
        let even = shares(&held, None);
        assert!(even.iter().all(|s| s.len() == 1 && area(s) == 12));
        let by_grid = shares(&held[..4], Some((4, 1)));
        assert!(
            by_grid
                .iter()
                .all(|s| s.len() == 1 && s[0].blocks.len() == 5)
        );
        assert!(share_out(GRID, &[held_by(Some(&whole))], Some((1, 6))).is_err());
        let many = shares(&vec![Some(&whole); 70], None);
        assert_eq!(
            many.iter().filter(|s| !s.is_empty()).count(),
            12,
            "more than tiles"
        );
    }

    #[test]
    fn replicas_share_what_they_both_hold() {
        let low = set(vec![rect(0, 12, 0, 2)]);
        let high = set(vec![rect(0, 12, 2, 5)]);
        let held = [Some(&low), Some(&low), Some(&high), Some(&high), None];
        let shares = shares(&held, None);
        let areas: Vec<u32> = shares.iter().map(|s| area(s)).collect();
        assert_eq!(areas, [12, 12, 24, 12, 0]);
        assert!(shares.iter().all(|s| s.len() <= 1));
    }

    #[test]
    fn the_slower_of_two_gets_less_and_the_last_resort_nothing() {
        let whole = set(vec![GRID.whole()]);
        let holder = |tier, weight| Holder {
            tiles: Some(&whole),
            tier,
            weight,
        };
        let holders = [holder(0, 8), holder(0, 2), holder(1, 8)];
        let shares = share_out(GRID, &holders, None).expect("whole");
        let areas: Vec<u32> = shares.of.iter().map(|s| area(s)).collect();
        assert_eq!(areas, [48, 12, 0]);
        assert_eq!(shares.most_subtrees, 1);
    }

    #[test]
    fn parts_know_who_else_holds_them() {
        let whole = set(vec![GRID.whole()]);
        let half = set(vec![rect(0, 6, 0, 5)]);
        let holders = [held_by(Some(&half)), held_by(Some(&whole)), held_by(None)];
        let strip = rect(0, 12, 1, 2);
        let parts = parts(GRID, &holders, &[strip]);
        assert_eq!(
            parts,
            [(rect(0, 6, 1, 2), vec![0, 1]), (rect(6, 12, 1, 2), vec![1])]
        );
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
    fn missing_tiles_are_merged() {
        let held = [set(vec![rect(0, 12, 0, 4)]), set(vec![rect(0, 6, 4, 5)])];
        let missing = uncovered(GRID, &held.each_ref().map(Some));
        assert_eq!(missing, [rect(6, 12, 4, 5)]);
        assert_eq!(list(&missing), "experts 6..12 blocks 4..5");
        assert_eq!(uncovered(GRID, &[]), [GRID.whole()]);
    }
}
