//! Every tile's first node.
//!
//! A layer's tiles are a line: block after block, and in a block expert after expert. Each node
//! gets one interval of it, so that it does an equal share of every expert as far as its interval
//! spans whole blocks, and a cyclic run of experts on top. An interval is at most three
//! rectangles.

use ds4_common::tiles::{Grid, Span, TileRect};

use super::cluster::NodeNumbers;
use super::demand::{Demand, TileCosts};
use super::shares::{Speed, level, round};

/// A rectangle of a layer's tiles and the nodes that hold it. The first computes it as long as all
/// is well; the others stand by, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub rect: TileRect,
    pub holders: Vec<usize>,
}

/// All parts of every layer; in a layer they cover the grid once.
pub type Placement = Vec<Vec<Part>>;

/// The smallest piece of a block that shares are made of, as a number of experts.
#[derive(Clone, Copy, Debug)]
struct Grain {
    grid: Grid,
    experts: u32,
}

impl Grain {
    /// Pieces of a block.
    fn of_block(self) -> u32 {
        self.grid.experts.div_ceil(self.experts)
    }

    /// Pieces of a layer.
    fn of_layer(self) -> u32 {
        self.of_block() * self.grid.blocks
    }

    /// Bytes of the largest piece.
    fn bytes(self, tiles: &TileCosts) -> u64 {
        tiles.bytes.iter().max().copied().unwrap_or(0) * u64::from(self.experts)
    }

    /// The rectangles of the pieces `start..end` of the line.
    fn rects(self, start: u32, end: u32) -> Vec<TileRect> {
        let of_block = self.of_block();
        let expert = |piece: u32| (piece * self.experts).min(self.grid.experts);
        let rect = |e0: u32, e1: u32, b0: u32, b1: u32| TileRect {
            experts: Span::new(expert(e0), expert(e1)),
            blocks: Span::new(b0, b1),
        };
        let (b0, e0) = (start / of_block, start % of_block);
        let (b1, e1) = (end / of_block, end % of_block);
        if b0 == b1 {
            return vec![rect(e0, e1, b0, b0 + 1)];
        }
        let first_whole = if e0 > 0 { b0 + 1 } else { b0 };
        let parts = [
            rect(e0, of_block, b0, first_whole),
            rect(0, of_block, first_whole, b1),
            rect(0, e1, b1, b1 + 1),
        ];
        let real = |r: &TileRect| !r.experts.is_empty() && !r.blocks.is_empty();
        parts.into_iter().filter(real).collect()
    }
}

/// Placements within every node's room, from those with the fewest rectangles to the most even.
/// None: there is no room.
pub(super) fn candidates(demand: &Demand, nodes: &[NodeNumbers]) -> Vec<Placement> {
    let mut found = Vec::new();
    for experts in grains(demand.grid.experts) {
        let grain = Grain {
            grid: demand.grid,
            experts,
        };
        found.extend(by_speed(demand, nodes, grain));
    }
    if found.is_empty() {
        let single = Grain {
            grid: demand.grid,
            experts: 1,
        };
        found.extend(by_speed(demand, nodes, single).or_else(|| first_fit(demand, nodes)));
    }
    found
}

/// All of a block, then halves to sixteenths where the experts are enough for it.
fn grains(experts: u32) -> Vec<u32> {
    let whole = experts.next_power_of_two();
    let sizes = (0..=4).map(|halvings| (whole >> halvings).clamp(1, experts));
    let mut sizes: Vec<u32> = sizes.collect();
    sizes.dedup();
    sizes
}

/// Shares by speed and memory, in pieces of one grain.
fn by_speed(demand: &Demand, nodes: &[NodeNumbers], grain: Grain) -> Option<Placement> {
    let total = grain.of_layer();
    let shares = level(&speeds(demand, nodes));
    let targets: Vec<f64> = shares.iter().map(|s| s * f64::from(total)).collect();
    let all: u64 = demand.layers.iter().map(|l| grain.bytes(&l.tiles)).sum();
    let room: Vec<u32> = nodes.iter().map(|n| pieces(n.room, all, total)).collect();
    let layer = |counts: &[u32]| intervals(grain, counts);
    // Every layer alike, if that fits.
    if let Some(counts) = round(&targets, &room, total) {
        return Some(vec![layer(&counts); demand.layers.len()]);
    }
    let mut left: Vec<u64> = nodes.iter().map(|n| n.room).collect();
    let mut carry = vec![0.0; nodes.len()];
    let mut placement = Vec::with_capacity(demand.layers.len());
    for l in &demand.layers {
        let bytes = grain.bytes(&l.tiles);
        let room: Vec<u32> = left
            .iter()
            .map(|left| pieces(*left, bytes, total))
            .collect();
        let wanted: Vec<f64> = targets.iter().zip(&carry).map(|(t, c)| t + c).collect();
        let counts = round(&wanted, &room, total)?;
        for (i, &count) in counts.iter().enumerate() {
            left[i] -= u64::from(count) * bytes;
            carry[i] = wanted[i] - f64::from(count);
        }
        placement.push(layer(&counts));
    }
    Some(placement)
}

/// How many pieces fit, up to all of a layer.
fn pieces(room: u64, bytes: u64, total: u32) -> u32 {
    let fit = room.checked_div(bytes).unwrap_or(u64::from(total));
    u32::try_from(fit).unwrap_or(u32::MAX).min(total)
}

/// What a share of a layer costs each node, for one token.
fn speeds(demand: &Demand, nodes: &[NodeNumbers]) -> Vec<Speed> {
    let layers = demand.layers.len().max(1) as f64;
    let read = demand.routed_bytes_a_token() as f64 / layers;
    // About a row a block.
    let reply = (demand.hidden * 4) as f64 * f64::from(demand.grid.blocks);
    let held = demand.routed_bytes().max(1) as f64;
    nodes
        .iter()
        .map(|node| Speed {
            whole: read / node.bandwidth + reply / node.link,
            delay: node.rtt,
            cap: (node.room as f64 / held).min(1.0),
        })
        .collect()
}

/// One interval a node, the largest first: what comes first is best aligned with the tree of
/// blocks, and saves rows.
fn intervals(grain: Grain, counts: &[u32]) -> Vec<Part> {
    let mut order: Vec<usize> = (0..counts.len()).filter(|&i| counts[i] > 0).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(counts[i]));
    let mut parts = Vec::new();
    let mut at = 0;
    for node in order {
        let end = at + counts[node];
        for rect in grain.rects(at, end) {
            parts.push(Part {
                rect,
                holders: vec![node],
            });
        }
        at = end;
    }
    parts
}

/// Tile by tile to the first node with room: uses memory to the last tile, whatever the speed.
fn first_fit(demand: &Demand, nodes: &[NodeNumbers]) -> Option<Placement> {
    let mut left: Vec<u64> = nodes.iter().map(|n| n.room).collect();
    let mut placement = Vec::with_capacity(demand.layers.len());
    for layer in &demand.layers {
        let mut parts = Vec::new();
        for (block, &bytes) in (0u32..).zip(&layer.tiles.bytes) {
            let mut expert = 0;
            while expert < demand.grid.experts {
                let node = left.iter().position(|left| *left >= bytes)?;
                let wanted = demand.grid.experts - expert;
                let count = pieces(left[node], bytes, wanted);
                left[node] -= u64::from(count) * bytes;
                parts.push(Part {
                    rect: TileRect {
                        experts: Span::new(expert, expert + count),
                        blocks: Span::new(block, block + 1),
                    },
                    holders: vec![node],
                });
                expert += count;
            }
        }
        placement.push(parts);
    }
    Some(placement)
}
