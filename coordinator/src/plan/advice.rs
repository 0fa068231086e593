//! What to do when a model does not fit.

use super::cluster_spec::{ClusterSpec, NodeNumbers, default_reserve};
use super::demand::Demand;
use super::file::MAX_NODES;
use super::replicas::{ExtraReplicas, fits};

/// The nodes have no room for a model: how much is missing, and what would be enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoFit {
    /// The model's name.
    pub model: String,
    /// How many nodes the plan was for.
    pub nodes: usize,
    /// Bytes of the routed experts, times the number of replicas that were required.
    pub needed: u64,
    /// Bytes that weights may take, summed over the nodes.
    pub room: u64,
    /// Required replicas of each tile besides the first.
    pub extra_replicas: usize,
    /// The smallest number of further nodes that is enough, if each is like the largest one, and
    /// the memory of such a node in bytes.
    pub more_nodes: Option<(usize, u64)>,
    /// Bytes of further memory that are enough if every node gets them.
    pub more_each: Option<u64>,
    /// The largest number of extra replicas that fits into the nodes as they are.
    pub fewer_replicas: Option<usize>,
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
        write!(f, "{} does not fit: its routed experts take ", self.model)?;
        write!(f, "{:.1} GB", gigabytes(self.needed))?;
        if self.extra_replicas > 0 {
            write!(f, " with {} replicas of each tile", self.extra_replicas + 1)?;
        }
        let nodes = self.nodes;
        let room = gigabytes(self.room);
        write!(
            f,
            "; the {nodes} node{plural} {verb} room for {room:.1} GB of weights"
        )?;
        match self.needed.checked_sub(self.room) {
            Some(short) if short > 0 => write!(f, ", {:.1} GB short", gigabytes(short))?,
            _ => write!(f, ", but not for whole tiles on different nodes")?,
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
        if let Some(replicas) = self.fewer_replicas {
            ways.push(format!("--replicas {replicas}"));
        }
        if ways.is_empty() {
            return Ok(());
        }
        write!(f, "; it would fit with {}", ways.join(", or "))
    }
}

/// Suggested memory is a multiple of this many bytes.
const STEP: u64 = 100_000_000;

/// Finds out by how much the model does not fit and what would be enough.
pub(super) fn no_fit(demand: &Demand, cluster: &ClusterSpec, extra: ExtraReplicas) -> Box<NoFit> {
    let count = match extra {
        // Replicas that are optional need not fit.
        ExtraReplicas::AsFit => 0,
        ExtraReplicas::Exactly(count) => count,
    };
    let wanted = ExtraReplicas::Exactly(count);
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
        extra_replicas: count,
        more_nodes,
        more_each,
        fewer_replicas: (0..count)
            .rev()
            .find(|&fewer| fits(demand, nodes, ExtraReplicas::Exactly(fewer))),
    })
}

/// The room of a node with `more` bytes of memory. A default reserve grows with the memory, a given
/// one stays.
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

/// The smallest number from 1 to `most` that is enough, provided that every larger one is too.
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
