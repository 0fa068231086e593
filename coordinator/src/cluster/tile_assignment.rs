//! Assigns every tile of a layer to exactly one of the replicas that hold it.

use ds4_common::tiles::{Grid, Span, TileError, TileRect, TileSet};

/// Rectangles that a message lists.
const SHOWN: usize = 8;

/// Rectangles as text for a message, at most [`SHOWN`] of them.
pub(super) fn list(rects: &[TileRect]) -> String {
    let mut text: Vec<String> = rects.iter().take(SHOWN).map(ToString::to_string).collect();
    if rects.len() > text.len() {
        text.push(format!("{} more", rects.len() - text.len()));
    }
    text.join(", ")
}

/// One possible place of computation: a node, or the local fallback. What it holds of the layer
/// is one replica of each of those tiles.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplicaCandidate<'a> {
    /// The tiles that it holds of the layer; `None` excludes it.
    pub(super) tiles: Option<&'a TileSet>,
    /// A tile is assigned within the lowest tier that has a replica of it.
    pub(super) tier: u8,
    /// Its relative share of what it holds together with others of its tier, at least 1.
    pub(super) weight: u32,
}

/// Which candidate computes which tiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TileAssignment {
    /// The rectangles of each candidate, possibly none.
    pub(super) shares: Vec<Vec<TileRect>>,
    /// The tiles without a replica.
    pub(super) missing: Vec<TileRect>,
    /// The largest number of maximal subtrees in one cell, a rectangle that every candidate holds
    /// either entirely or not at all.
    pub(super) most_subtrees: usize,
}

/// Assigns each tile of a layer's grid to exactly one candidate. The rectangles of a candidate are
/// merged as far as they lie in one rectangle that it holds, since a node computes what it holds
/// in separate rectangles separately. `cut` prescribes expert groups x block strips.
///
/// Equal candidates that all hold everything get equal cuts. Otherwise the grid is cut along every
/// border of a held rectangle, and a cell with several replicas is cut again by their weights.
///
/// # Errors
/// The grid cannot be cut as `cut` prescribes.
pub(super) fn assign_tiles(
    grid: Grid,
    candidates: &[ReplicaCandidate<'_>],
    cut: Option<(u32, u32)>,
) -> Result<TileAssignment, TileError> {
    let regions = match cut {
        Some((groups, strips)) => grid.cut(groups, strips)?,
        None => equal_cuts(grid, candidates).unwrap_or_else(|| vec![grid.whole()]),
    };
    let cells = cells(grid, candidates, &regions);
    let subtrees = cells.iter().map(|cell| cell.subtrees(grid).len());
    let most_subtrees = subtrees.max().unwrap_or(0);
    let mut choices: Vec<(TileRect, Vec<usize>)> = cells
        .into_iter()
        .map(|cell| (cell, preferred(candidates, cell)))
        .collect();
    // Cells without a choice come first, so that the others can even out the load.
    choices.sort_by_key(|(cell, candidates)| (candidates.len(), cell_key(cell)));
    let mut shares = vec![Vec::new(); candidates.len()];
    let mut missing = Vec::new();
    let mut loads = Loads::new(candidates);
    for (cell, candidates) in choices {
        if candidates.is_empty() {
            missing.push(cell);
        } else if regions.len() > 1 {
            shares[loads.least(&candidates, cell.tiles())].push(cell);
        } else {
            for (candidate, part) in loads.split(&candidates, cell) {
                shares[candidate].push(part);
            }
        }
    }
    let shares = shares
        .into_iter()
        .zip(candidates)
        .map(|(share, candidate)| merge_within(share, candidate.tiles));
    Ok(TileAssignment {
        shares: shares.collect(),
        missing: merge(missing),
        most_subtrees,
    })
}

/// The tiles of the grid that none of `held` contains, as merged rectangles.
#[must_use]
pub(super) fn uncovered(grid: Grid, held: &[Option<&TileSet>]) -> Vec<TileRect> {
    let candidates: Vec<ReplicaCandidate<'_>> = held.iter().copied().map(held_by).collect();
    let cells = cells(grid, &candidates, &[grid.whole()]);
    let missing = cells
        .into_iter()
        .filter(|cell| preferred(&candidates, *cell).is_empty());
    merge(missing.collect())
}

fn held_by(tiles: Option<&TileSet>) -> ReplicaCandidate<'_> {
    ReplicaCandidate {
        tiles,
        tier: 0,
        weight: 1,
    }
}

/// Cuts `rects` along the borders of what the candidates hold. Each cell comes with the candidates
/// of the lowest tier that have a replica of it.
pub(super) fn cells_with_replicas(
    grid: Grid,
    candidates: &[ReplicaCandidate<'_>],
    rects: &[TileRect],
) -> Vec<(TileRect, Vec<usize>)> {
    let cells = cells(grid, candidates, rects);
    cells
        .into_iter()
        .map(|cell| (cell, preferred(candidates, cell)))
        .collect()
}

/// Equal cuts for the candidates of the lowest tier, provided that they have equal weights and hold
/// everything.
fn equal_cuts(grid: Grid, candidates: &[ReplicaCandidate<'_>]) -> Option<Vec<TileRect>> {
    let tier = candidates.iter().map(|h| h.tier).min()?;
    let mut peers = candidates.iter().filter(|h| h.tier == tier);
    let first = peers.clone().next()?;
    let whole = |h: &ReplicaCandidate<'_>| {
        h.tiles
            .is_some_and(|t| t.rect_around(grid.whole()).is_some())
    };
    let alike = peers.all(|h| whole(h) && h.weight == first.weight);
    let count = candidates.iter().filter(|h| h.tier == tier).count();
    alike.then(|| grid.cut_for(count as u32).ok())?
}

/// The candidates of the lowest tier that hold `cell` in one piece.
fn preferred(candidates: &[ReplicaCandidate<'_>], cell: TileRect) -> Vec<usize> {
    let holds = |h: &ReplicaCandidate<'_>| {
        h.tiles
            .is_some_and(|tiles| tiles.rect_around(cell).is_some())
    };
    let tier = candidates.iter().filter(|h| holds(h)).map(|h| h.tier).min();
    let chosen = |h: &ReplicaCandidate<'_>| Some(h.tier) == tier && holds(h);
    let all = 0..candidates.len();
    all.filter(|&i| chosen(&candidates[i])).collect()
}

/// Number of tiles assigned to each candidate so far.
struct Loads<'a> {
    candidates: &'a [ReplicaCandidate<'a>],
    tiles: Vec<u64>,
}

impl<'a> Loads<'a> {
    fn new(candidates: &'a [ReplicaCandidate<'a>]) -> Self {
        Loads {
            candidates,
            tiles: vec![0; candidates.len()],
        }
    }

    /// Assigns `tiles` tiles to the one of `candidates` whose load by weight is then the least.
    fn least(&mut self, candidates: &[usize], tiles: u64) -> usize {
        let after = |&i: &usize| {
            let weight = u64::from(self.candidates[i].weight.max(1));
            // 840 is divisible by every weight up to 8, so that these fractions are exact.
            ((self.tiles[i] + tiles) * 840 / weight, i)
        };
        let chosen = candidates.iter().copied().min_by_key(after).unwrap_or(0);
        self.tiles[chosen] += tiles;
        chosen
    }

    /// Cuts a cell among `candidates`: along the blocks where there are enough of them, since that
    /// leaves few subtrees, else along the experts.
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
        for (&candidate, count) in candidates.iter().zip(counts).filter(|(_, n)| *n > 0) {
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
            parts.push((candidate, part));
        }
        parts
    }
}

/// Merges the rectangles of `share` that lie in the same rectangle of `held`.
fn merge_within(share: Vec<TileRect>, held: Option<&TileSet>) -> Vec<TileRect> {
    let held = held.map_or(&[][..], TileSet::rects);
    let mut merged: Vec<TileRect> = held
        .iter()
        .flat_map(|outer| merge(share.iter().copied().filter(|r| outer.covers(*r)).collect()))
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

/// Cuts `regions` along all borders of held rectangles.
fn cells(grid: Grid, candidates: &[ReplicaCandidate<'_>], regions: &[TileRect]) -> Vec<TileRect> {
    let borders = |total: u32, axis: &dyn Fn(&TileRect) -> Span| -> Vec<u32> {
        let rects = candidates
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
    for region in regions {
        for e in inside(&experts, region.experts) {
            cells.extend(
                inside(&blocks, region.blocks).map(|blocks| TileRect { experts: e, blocks }),
            );
        }
    }
    cells
}

/// The spans between neighbouring `borders`, clipped to `span`.
fn inside(borders: &[u32], span: Span) -> impl Iterator<Item = Span> {
    borders
        .windows(2)
        .map(move |w| Span::new(w[0].max(span.start), w[1].min(span.end)))
        .filter(|s| !s.is_empty())
}

/// Joins rectangles that share a whole side until none do, and sorts them. In sorted order the
/// rectangles that can be joined along an axis are neighbours, and a pass along one axis may make
/// joins along the other possible.
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

    /// How often each tile is assigned.
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
            let candidates: Vec<_> = held
                .iter()
                .enumerate()
                .map(|(i, tiles)| ReplicaCandidate {
                    tiles: Some(tiles),
                    tier: tiers[i % tiers.len()],
                    weight: weights[i % weights.len()],
                })
                .collect();
            let assignment = assign_tiles(GRID, &candidates, cut).expect("a legal cut");
            prop_assert_eq!(assignment.shares.len(), held.len());
            for (share, held) in assignment.shares.iter().zip(&held) {
                prop_assert!(share.iter().all(|r| held.rect_around(*r).is_some()));
            }
            let all: Vec<Vec<TileRect>> = held.iter().map(|h| h.rects().to_vec()).collect();
            let absent = counts(&all).iter().filter(|&&n| n == 0).count();
            prop_assert_eq!(area(&assignment.missing) as usize, absent);
            let sets: Vec<_> = held.iter().map(Some).collect();
            prop_assert_eq!(&assignment.missing, &uncovered(GRID, &sets));
            let mut given = assignment.shares.clone();
            given.push(assignment.missing);
            prop_assert!(counts(&given).iter().all(|&n| n == 1));
            // A tile is never assigned to a higher tier than the lowest that has a replica of it.
            for (i, share) in assignment.shares.iter().enumerate() {
                for (j, other) in held.iter().enumerate().filter(|(j, _)| candidates[*j].tier < candidates[i].tier) {
                    prop_assert!(share.iter().all(|r| other.rect_around(*r).is_none()), "{i} {j}");
                }
            }
        }
    }

    fn shares(held: &[Option<&TileSet>], cut: Option<(u32, u32)>) -> Vec<Vec<TileRect>> {
        let candidates: Vec<_> = held.iter().map(|tiles| held_by(*tiles)).collect();
        let assignment = assign_tiles(GRID, &candidates, cut).expect("a legal cut");
        assert!(assignment.missing.is_empty());
        assignment.shares
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
        assert!(assign_tiles(GRID, &[held_by(Some(&whole))], Some((1, 6))).is_err());
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
    fn the_slower_of_two_gets_less_and_a_higher_tier_nothing() {
        let whole = set(vec![GRID.whole()]);
        let candidate = |tier, weight| ReplicaCandidate {
            tiles: Some(&whole),
            tier,
            weight,
        };
        let candidates = [candidate(0, 8), candidate(0, 2), candidate(1, 8)];
        let assignment = assign_tiles(GRID, &candidates, None).expect("whole");
        let areas: Vec<u32> = assignment.shares.iter().map(|s| area(s)).collect();
        assert_eq!(areas, [48, 12, 0]);
        assert_eq!(assignment.most_subtrees, 1);
    }

    #[test]
    fn cells_come_with_their_replicas() {
        let whole = set(vec![GRID.whole()]);
        let half = set(vec![rect(0, 6, 0, 5)]);
        let candidates = [held_by(Some(&half)), held_by(Some(&whole)), held_by(None)];
        let strip = rect(0, 12, 1, 2);
        let cells = cells_with_replicas(GRID, &candidates, &[strip]);
        assert_eq!(
            cells,
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
