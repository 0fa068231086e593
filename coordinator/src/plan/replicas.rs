//! Further copies of tiles, with the memory that is left.

use std::collections::BTreeMap;

use ds4_common::tiles::{Grid, Span, TileRect};

use super::cluster::NodeNumbers;
use super::cover::pieces;
use super::demand::Demand;
use super::place::{Part, Placement};

/// Nodes over which what one node holds of a layer is spread, at least, where there are as many.
const SPREAD: usize = 4;

/// Adds up to `copies` holders to every part, on nodes with room for it: copies of what one node
/// computes go to several others, so that none of them has to do all of a lost node's work. Layers
/// are served in order until the memory ends. Gives the room that is left.
pub(super) fn add(
    placement: &mut Placement,
    demand: &Demand,
    nodes: &[NodeNumbers],
    copies: usize,
) -> Vec<u64> {
    let mut left: Vec<u64> = nodes.iter().map(|n| n.room).collect();
    for (parts, layer) in placement.iter().zip(&demand.layers) {
        for part in parts {
            for &holder in &part.holders {
                left[holder] = left[holder].saturating_sub(layer.tiles.rect_bytes(part.rect));
            }
        }
    }
    if copies == 0 || nodes.len() < 2 {
        return left;
    }
    for parts in placement.iter_mut() {
        *parts = split(demand.grid, parts, nodes.len() - 1);
    }
    for _ in 0..copies {
        for (parts, layer) in placement.iter_mut().zip(&demand.layers) {
            copy_layer(
                parts,
                &|rect| layer.tiles.rect_bytes(rect),
                nodes,
                &mut left,
            );
        }
    }
    for parts in placement.iter_mut() {
        *parts = join(demand.grid, parts);
    }
    left
}

/// Cuts the parts by block, and along the experts where a node's blocks are fewer than the others
/// that could stand in for it.
fn split(grid: Grid, parts: &[Part], others: usize) -> Vec<Part> {
    let wanted = others.min(SPREAD);
    let mut blocks: BTreeMap<usize, usize> = BTreeMap::new();
    for part in parts {
        let count = part.rect.blocks.len() as usize;
        *blocks.entry(part.holders[0]).or_default() += count;
    }
    let quarter = (grid.experts.next_power_of_two() / 4).max(1);
    let mut out = Vec::new();
    for part in parts {
        let few = blocks.get(&part.holders[0]).is_some_and(|n| *n < wanted);
        let step = if few { quarter } else { grid.experts };
        let Span { start, end } = part.rect.experts;
        for block in part.rect.blocks.start..part.rect.blocks.end {
            let mut at = start;
            while at < end {
                // Along the borders of quarters, where the tree has its nodes.
                let next = ((at / step + 1) * step).min(end);
                out.push(Part {
                    rect: TileRect {
                        experts: Span::new(at, next),
                        blocks: Span::new(block, block + 1),
                    },
                    holders: part.holders.clone(),
                });
                at = next;
            }
        }
    }
    out
}

/// Gives each part one more holder: the node that would have the least to do if the part's first
/// holder were lost, of equals the nearest behind it.
fn copy_layer(
    parts: &mut [Part],
    bytes: &dyn Fn(TileRect) -> u64,
    nodes: &[NodeNumbers],
    left: &mut [u64],
) {
    let count = nodes.len();
    let mut own = vec![0.0; count];
    for part in parts.iter() {
        own[part.holders[0]] += bytes(part.rect) as f64;
    }
    // taken[lost][node]: what node takes over from lost.
    let mut taken = vec![vec![0.0; count]; count];
    for part in parts {
        let lost = part.holders[0];
        let size = bytes(part.rect);
        let time = |node: usize| {
            let work = own[node] + taken[lost][node] + size as f64;
            nodes[node].rtt + work / nodes[node].bandwidth
        };
        let chosen = (1..count)
            .map(|step| (lost + step) % count)
            .filter(|node| left[*node] >= size && !part.holders.contains(node))
            .min_by(|&a, &b| time(a).total_cmp(&time(b)));
        if let Some(node) = chosen {
            left[node] -= size;
            taken[lost][node] += size as f64;
            part.holders.push(node);
        }
    }
}

/// Joins parts with equal holders again.
fn join(grid: Grid, parts: &[Part]) -> Vec<Part> {
    let mut by_holders: BTreeMap<&[usize], Vec<TileRect>> = BTreeMap::new();
    for part in parts {
        by_holders.entry(&part.holders).or_default().push(part.rect);
    }
    let mut out = Vec::new();
    for (holders, rects) in by_holders {
        out.extend(union(grid, &rects).into_iter().map(|rect| Part {
            rect,
            holders: holders.to_vec(),
        }));
    }
    out.sort_by_key(|p| (p.rect.blocks, p.rect.experts));
    out
}

/// Few rectangles that cover the same tiles; overlaps are allowed.
pub(super) fn union(grid: Grid, rects: &[TileRect]) -> Vec<TileRect> {
    let all = pieces(grid, &[rects]);
    let held = all.into_iter().filter(|piece| !piece.holders.is_empty());
    held.map(|piece| piece.rect).collect()
}
