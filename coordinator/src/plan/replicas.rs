//! Plans further replicas of tiles, in the memory that the primaries leave free.
//!
//! Which replica computes a tile while the cluster runs is decided elsewhere, by what nodes report
//! and how they answer: see `cluster/dispatch/replica_selector.rs`.

use std::collections::BTreeMap;

use ds4_common::tiles::{Grid, Span, TileRect};

use super::cluster_spec::NodeNumbers;
use super::demand::Demand;
use super::held_rects::held_rects;
use super::placement::{self, PlacedRect, Placement};

/// Nodes over which the tiles of one node are spread, at least, where there are as many.
const SPREAD: usize = 4;

/// How many replicas each tile gets besides its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtraReplicas {
    /// One for as many tiles as there is memory for.
    AsFit,
    /// So many for every tile; there is no plan without them.
    Exactly(usize),
}

/// Whether any placement fits into the nodes, whatever its speed.
pub(super) fn fits(demand: &Demand, nodes: &[NodeNumbers], extra: ExtraReplicas) -> bool {
    placement::candidates(demand, nodes)
        .into_iter()
        .any(|mut placement| add(&mut placement, demand, nodes, extra))
}

/// Adds replicas to every rectangle, on nodes with room for them: the replicas of one node's tiles
/// go to several others, so that none of them has to do all of a lost node's work. Layers are
/// served in order until the memory is used up. Returns whether all replicas that `extra` requires
/// have found room.
pub(super) fn add(
    placement: &mut Placement,
    demand: &Demand,
    nodes: &[NodeNumbers],
    extra: ExtraReplicas,
) -> bool {
    let count = match extra {
        ExtraReplicas::AsFit => 1,
        ExtraReplicas::Exactly(count) => count,
    };
    if count > 0 && nodes.len() > 1 {
        add_rounds(placement, demand, nodes, count);
    }
    let complete = |placed: &PlacedRect| placed.replicas.len() > count;
    extra == ExtraReplicas::AsFit || placement.iter().flatten().all(complete)
}

/// Up to `count` more replicas of every tile, one in each round.
fn add_rounds(placement: &mut Placement, demand: &Demand, nodes: &[NodeNumbers], count: usize) {
    let mut left: Vec<u64> = nodes.iter().map(|n| n.room).collect();
    for (placed, layer) in placement.iter().zip(&demand.layers) {
        for placed in placed {
            for &node in &placed.replicas {
                left[node] = left[node].saturating_sub(layer.tiles.rect_bytes(placed.rect));
            }
        }
    }
    for placed in placement.iter_mut() {
        *placed = split(demand.grid, placed, nodes.len() - 1);
    }
    for _ in 0..count {
        for (placed, layer) in placement.iter_mut().zip(&demand.layers) {
            let bytes = |rect| layer.tiles.rect_bytes(rect);
            add_to_layer(placed, &bytes, nodes, &mut left);
        }
    }
    for placed in placement.iter_mut() {
        *placed = join(demand.grid, placed);
    }
}

/// Cuts the rectangles by block, and also along the experts where a node has fewer blocks than
/// there are `others` that could take over from it.
fn split(grid: Grid, placed: &[PlacedRect], others: usize) -> Vec<PlacedRect> {
    let wanted = others.min(SPREAD);
    let mut blocks: BTreeMap<usize, usize> = BTreeMap::new();
    for PlacedRect { rect, replicas } in placed {
        *blocks.entry(replicas[0]).or_default() += rect.blocks.len() as usize;
    }
    let quarter = (grid.experts.next_power_of_two() / 4).max(1);
    let mut out = Vec::new();
    for PlacedRect { rect, replicas } in placed {
        let few = blocks.get(&replicas[0]).is_some_and(|n| *n < wanted);
        let step = if few { quarter } else { grid.experts };
        let Span { start, end } = rect.experts;
        for block in rect.blocks.start..rect.blocks.end {
            let mut at = start;
            while at < end {
                // Along the borders of quarters, where subtrees of the reduction tree end.
                let next = ((at / step + 1) * step).min(end);
                out.push(PlacedRect {
                    rect: TileRect {
                        experts: Span::new(at, next),
                        blocks: Span::new(block, block + 1),
                    },
                    replicas: replicas.clone(),
                });
                at = next;
            }
        }
    }
    out
}

/// Gives each rectangle one more replica: on the node that would finish first if the rectangle's
/// primary were lost; among equals, on the next one after the primary.
fn add_to_layer(
    placed: &mut [PlacedRect],
    bytes: &dyn Fn(TileRect) -> u64,
    nodes: &[NodeNumbers],
    left: &mut [u64],
) {
    let count = nodes.len();
    let mut own = vec![0.0; count];
    for PlacedRect { rect, replicas } in placed.iter() {
        own[replicas[0]] += bytes(*rect) as f64;
    }
    // taken[lost][node]: bytes that the node takes over if `lost` is gone.
    let mut taken = vec![vec![0.0; count]; count];
    for PlacedRect { rect, replicas } in placed {
        let lost = replicas[0];
        let size = bytes(*rect);
        let seconds = |node: usize| {
            let read = own[node] + taken[lost][node] + size as f64;
            nodes[node].rtt + read / nodes[node].bandwidth
        };
        let chosen = (1..count)
            .map(|step| (lost + step) % count)
            .filter(|node| left[*node] >= size && !replicas.contains(node))
            .min_by(|&a, &b| seconds(a).total_cmp(&seconds(b)));
        if let Some(node) = chosen {
            left[node] -= size;
            taken[lost][node] += size as f64;
            replicas.push(node);
        }
    }
}

/// Joins rectangles with the same replicas again.
fn join(grid: Grid, placed: &[PlacedRect]) -> Vec<PlacedRect> {
    let mut by_replicas: BTreeMap<&[usize], Vec<TileRect>> = BTreeMap::new();
    for PlacedRect { rect, replicas } in placed {
        by_replicas.entry(replicas).or_default().push(*rect);
    }
    let mut out = Vec::new();
    for (replicas, rects) in by_replicas {
        out.extend(union(grid, &rects).into_iter().map(|rect| PlacedRect {
            rect,
            replicas: replicas.to_vec(),
        }));
    }
    out.sort_by_key(|p| (p.rect.blocks, p.rect.experts));
    out
}

/// A small number of rectangles that do not overlap and cover the same tiles as `rects`, which may
/// overlap.
pub(super) fn union(grid: Grid, rects: &[TileRect]) -> Vec<TileRect> {
    let all = held_rects(grid, &[rects]).into_iter();
    all.filter(|held| !held.nodes.is_empty())
        .map(|held| held.rect)
        .collect()
}
