//! What to do when a model does not fit.

use super::cluster::{Cluster, NodeNumbers, default_reserve};
use super::demand::Demand;
use super::file::MAX_NODES;
use super::planner::{Copies, fits};

/// A model that the nodes have no room for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoFit {
    pub model: String,
    pub nodes: usize,
    /// Bytes of the routed experts, all copies counted.
    pub needed: u64,
    /// Bytes that weights may take on the nodes, together.
    pub room: u64,
    pub copies: usize,
    /// The fewest machines like the largest one that would have to join.
    pub more_nodes: Option<(usize, u64)>,
    /// Bytes of memory that every node would have to have more.
    pub more_each: Option<u64>,
    /// Copies that would fit.
    pub fewer_copies: Option<usize>,
}

impl std::error::Error for NoFit {}

impl std::fmt::Display for NoFit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        let (plural, verb) = if self.nodes == 1 {
            ("", "has")
        } else {
            ("s", "have")
        };
        write!(f, "{} does not fit: its routed experts are ", self.model)?;
        write!(f, "{:.1} GB", gigabytes(self.needed))?;
        if self.copies > 0 {
            write!(f, " in {} copies", self.copies + 1)?;
        }
        let nodes = self.nodes;
        let room = gigabytes(self.room);
        write!(
            f,
            ", the {nodes} node{plural} {verb} room for {room:.1} GB of weights"
        )?;
        match self.needed.checked_sub(self.room) {
            Some(short) if short > 0 => write!(f, ", {:.1} GB short", gigabytes(short))?,
            _ => write!(f, ", but not where copies could go")?,
        }
        let mut ways = Vec::new();
        if let Some((count, memory)) = self.more_nodes {
            let plural = if count == 1 { "" } else { "s" };
            let size = gigabytes(memory);
            ways.push(format!("{count} more node{plural} of {size:.1} GB"));
        }
        if let Some(bytes) = self.more_each {
            ways.push(format!("{:.1} GB more on every node", gigabytes(bytes)));
        }
        if let Some(copies) = self.fewer_copies {
            ways.push(format!("--replicas {copies}"));
        }
        if ways.is_empty() {
            return Ok(());
        }
        write!(f, "; what would fit: {}", ways.join(", or "))
    }
}

/// The finest step in which memory is suggested.
const STEP: u64 = 100_000_000;

pub(super) fn no_fit(demand: &Demand, cluster: &Cluster, copies: Copies) -> Box<NoFit> {
    let count = match copies {
        Copies::AsFit => 0,
        Copies::Exactly(count) => count,
    };
    let wanted = match copies {
        // A copy where it fits is no demand.
        Copies::AsFit => Copies::Exactly(0),
        exactly => exactly,
    };
    let nodes = &cluster.nodes;
    let largest = nodes.iter().max_by_key(|n| n.room).filter(|n| n.room > 0);
    let more_nodes = largest.and_then(|largest| {
        let with = |more: u64| {
            let mut all = nodes.clone();
            all.extend(std::iter::repeat_n(largest.clone(), more as usize));
            fits(demand, &all, wanted)
        };
        let most = MAX_NODES.saturating_sub(nodes.len()) as u64;
        let more = smallest(most, with)?;
        Some((more as usize, largest.memory))
    });
    let needed = demand.routed_bytes() * (count as u64 + 1);
    let with_memory = |steps: u64| {
        let grown = nodes.iter().map(|node| NodeNumbers {
            memory: node.memory + steps * STEP,
            room: grown_room(node, steps * STEP),
            ..node.clone()
        });
        fits(demand, &grown.collect::<Vec<_>>(), wanted)
    };
    let more_each = smallest(2 * needed / STEP + 64, with_memory).map(|steps| steps * STEP);
    Box::new(NoFit {
        model: demand.name.clone(),
        nodes: nodes.len(),
        needed,
        room: nodes.iter().map(|n| n.room).sum(),
        copies: count,
        more_nodes,
        more_each,
        fewer_copies: (0..count)
            .rev()
            .find(|&fewer| fits(demand, nodes, Copies::Exactly(fewer))),
    })
}

/// The room of a node with more memory, if what is kept free of weights grows as it does by
/// default.
fn grown_room(node: &NodeNumbers, more: u64) -> u64 {
    let reserve = node.memory - node.room;
    let by_default = default_reserve(node.memory) == reserve || node.room == 0;
    let memory = node.memory + more;
    let reserve = if by_default {
        default_reserve(memory)
    } else {
        reserve
    };
    memory.saturating_sub(reserve)
}

/// The smallest number from 1 to `most` that is enough, if more is never less.
fn smallest(most: u64, enough: impl Fn(u64) -> bool) -> Option<u64> {
    if most == 0 || !enough(most) {
        return None;
    }
    let (mut low, mut high) = (0, most);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if enough(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    Some(high)
}
