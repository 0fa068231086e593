//! The primary replica of every tile: the node that computes it while all nodes are up.
//!
//! The tiles of a layer form a line: block after block, and within a block expert after expert.
//! Each node gets one interval of the line. Where the interval spans whole blocks the node does
//! the same share of every expert; what is left over is a run of experts of one block. An interval
//! is at most three rectangles.

use ds4_common::tiles::{Grid, Span, TileRect};

use super::cluster_spec::NodeNumbers;
use super::demand::{Demand, TileCosts};
use super::shares::{Speed, equal_times, round};

/// A rectangle of a layer's tiles and its replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedRect {
    /// The tiles, of one layer.
    pub rect: TileRect,
    /// Indices of the nodes that hold the tiles, without repetition and not empty. The first is
    /// the primary: it computes the tiles while all nodes are up. The others stand by, in this
    /// order.
    pub replicas: Vec<usize>,
}

/// The rectangles of every layer; those of one layer cover the grid once.
pub type Placement = Vec<Vec<PlacedRect>>;

/// The unit that shares are made of: so many experts of one block.
#[derive(Clone, Copy, Debug)]
struct Grain {
    grid: Grid,
    experts: u32,
}

impl Grain {
    /// Units of a block.
    fn of_block(self) -> u32 {
        self.grid.experts.div_ceil(self.experts)
    }

    /// Units of a layer.
    fn of_layer(self) -> u32 {
        self.of_block() * self.grid.blocks
    }

    /// Bytes of the largest unit.
    fn bytes(self, tiles: &TileCosts) -> u64 {
        tiles.bytes.iter().max().copied().unwrap_or(0) * u64::from(self.experts)
    }

    /// The rectangles of the units `start..end` of the line.
    fn rects(self, start: u32, end: u32) -> Vec<TileRect> {
        let of_block = self.of_block();
        let expert = |unit: u32| (unit * self.experts).min(self.grid.experts);
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
        let rects = [
            rect(e0, of_block, b0, first_whole),
            rect(0, of_block, first_whole, b1),
            rect(0, e1, b1, b1 + 1),
        ];
        let real = |r: &TileRect| !r.experts.is_empty() && !r.blocks.is_empty();
        rects.into_iter().filter(real).collect()
    }
}

/// Placements within the room of every node, from the one with the fewest rectangles to the most
/// even one. Empty if the nodes have too little room.
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

/// Experts of a unit: a whole block, then its halves down to sixteenths, at least one expert.
fn grains(experts: u32) -> Vec<u32> {
    let whole = experts.next_power_of_two();
    let sizes = (0..=4).map(|halvings| (whole >> halvings).clamp(1, experts));
    let mut sizes: Vec<u32> = sizes.collect();
    sizes.dedup();
    sizes
}

/// Shares by speed and memory, in units of one grain.
fn by_speed(demand: &Demand, nodes: &[NodeNumbers], grain: Grain) -> Option<Placement> {
    let total = grain.of_layer();
    let shares = equal_times(&speeds(demand, nodes));
    let targets: Vec<f64> = shares.iter().map(|s| s * f64::from(total)).collect();
    let all: u64 = demand.layers.iter().map(|l| grain.bytes(&l.tiles)).sum();
    let room: Vec<u32> = nodes.iter().map(|n| units(n.room, all, total)).collect();
    let layer = |counts: &[u32]| intervals(grain, counts);
    // The same cut in every layer, if that fits.
    if let Some(counts) = round(&targets, &room, total) {
        return Some(vec![layer(&counts); demand.layers.len()]);
    }
    let mut left: Vec<u64> = nodes.iter().map(|n| n.room).collect();
    let mut carry = vec![0.0; nodes.len()];
    let mut placement = Vec::with_capacity(demand.layers.len());
    for l in &demand.layers {
        let bytes = grain.bytes(&l.tiles);
        let room: Vec<u32> = left.iter().map(|left| units(*left, bytes, total)).collect();
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

/// How many units of `bytes` each fit into `room`, at most `total`.
fn units(room: u64, bytes: u64, total: u32) -> u32 {
    let fit = room.checked_div(bytes).unwrap_or(u64::from(total));
    u32::try_from(fit).unwrap_or(u32::MAX).min(total)
}

/// What limits the share of a layer that each node takes, for one token: the share's bytes read
/// from memory and sent back, behind one round trip.
fn speeds(demand: &Demand, nodes: &[NodeNumbers]) -> Vec<Speed> {
    let layers = demand.layers.len().max(1) as f64;
    let read = demand.routed_bytes_a_token() as f64 / layers;
    // About one row for each block.
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

/// One interval for each node, the largest first: the first ones are best aligned with the
/// reduction tree, so their replies have fewer rows.
fn intervals(grain: Grain, counts: &[u32]) -> Vec<PlacedRect> {
    let mut order: Vec<usize> = (0..counts.len()).filter(|&i| counts[i] > 0).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(counts[i]));
    let mut placed = Vec::new();
    let mut at = 0;
    for node in order {
        let end = at + counts[node];
        let rects = grain.rects(at, end).into_iter();
        placed.extend(rects.map(|rect| PlacedRect {
            rect,
            replicas: vec![node],
        }));
        at = end;
    }
    placed
}

/// Gives each tile to the first node with room for it: fills the memory to the last tile and
/// ignores speed.
fn first_fit(demand: &Demand, nodes: &[NodeNumbers]) -> Option<Placement> {
    let mut left: Vec<u64> = nodes.iter().map(|n| n.room).collect();
    let mut placement = Vec::with_capacity(demand.layers.len());
    for layer in &demand.layers {
        let mut placed = Vec::new();
        for (block, &bytes) in (0u32..).zip(&layer.tiles.bytes) {
            let mut expert = 0;
            while expert < demand.grid.experts {
                let node = left.iter().position(|left| *left >= bytes)?;
                let wanted = demand.grid.experts - expert;
                let count = units(left[node], bytes, wanted);
                left[node] -= u64::from(count) * bytes;
                placed.push(PlacedRect {
                    rect: TileRect {
                        experts: Span::new(expert, expert + count),
                        blocks: Span::new(block, block + 1),
                    },
                    replicas: vec![node],
                });
                expert += count;
            }
        }
        placement.push(placed);
    }
    Some(placement)
}
