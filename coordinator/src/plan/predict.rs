//! The model of time: what a step of some tokens takes on a cluster.
//!
//! ```text
//! step  = sum over layers of (dense + max(shared, experts)) + head
//! dense = max(bytes / coordinator's bandwidth, operations / its rate); shared and head alike
//! experts = max over nodes of (round trip + max(read, multiply) + wire) + CPU of the calls
//! wire  = bytes of request and reply / link; all nodes' bytes pass the coordinator's link
//! ```
//!
//! The formula is the project's own: a step is bound by memory or by multipliers on each machine,
//! and a layer by its slowest node. What a node reads depends on the experts that the tokens
//! choose. They are drawn uniformly, by a generator with a fixed seed, and the time of the slowest
//! node is averaged over the draws.

use std::collections::HashMap;
use std::sync::Arc;

use ds4_common::model::Amount;
use ds4_common::random::XorShift64Star;
use ds4_common::tiles::{Grid, TileRect};

use super::cluster_spec::{ClusterSpec, NodeNumbers};
use super::demand::{Demand, TileCosts};

/// Seconds of the coordinator's CPU for one call to one node: encoding, two system calls and
/// waking a thread.
pub const CALL_SECONDS: f64 = 50e-6;

/// How often one token's experts are drawn; in steps of more tokens the draws are fewer, in
/// proportion.
const DRAWS: usize = 1024;

/// Which machine computes which tiles of a layer. Together they are the layer's grid.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LayerLoad {
    /// The tiles of each node, by node; a node without tiles is not called.
    pub nodes: Vec<Vec<TileRect>>,
    /// The tiles that the coordinator computes from its own model file.
    pub local: Vec<TileRect>,
}

/// Predicted time and traffic of one step of the engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepTime {
    /// Seconds of the step: `own` and `waiting` together.
    pub seconds: f64,
    /// Seconds in which the coordinator computes.
    pub own: f64,
    /// Seconds in which it only waits for experts.
    pub waiting: f64,
    /// Bytes sent to nodes.
    pub requests: f64,
    /// Bytes received from nodes.
    pub replies: f64,
    /// Seconds that the messages take on the coordinator's link.
    pub own_link: f64,
    /// Seconds that they take on the link of each node, by node.
    pub links: Vec<f64>,
}

/// Predicted time and traffic of the routed experts of one layer.
#[derive(Clone, Debug)]
struct ExpertsTime {
    /// Seconds until the last node has answered, on average.
    remote: f64,
    /// Seconds of the tiles that the coordinator computes, on average.
    local: f64,
    /// Bytes sent to nodes.
    requests: f64,
    /// Bytes received from nodes.
    replies: f64,
    /// Seconds on the link of each node.
    links: Vec<f64>,
}

/// Predicts a step of `tokens` tokens in which only the last position's logits are computed.
/// `loads` has one entry for each layer; the coordinator reads the experts of its own tiles at
/// `local_bandwidth` bytes per second.
#[must_use]
pub fn predict_step(
    demand: &Demand,
    cluster: &ClusterSpec,
    loads: &[LayerLoad],
    tokens: usize,
    local_bandwidth: f64,
) -> StepTime {
    let own = &cluster.coordinator;
    let time = |amount: Amount| {
        let read = amount.bytes as f64 / own.bandwidth;
        read.max(2.0 * (amount.values * tokens as u64) as f64 / own.compute)
    };
    let mut all = StepTime {
        links: vec![0.0; cluster.nodes.len()],
        ..StepTime::default()
    };
    let mut known: HashMap<(&LayerLoad, Arc<TileCosts>), ExpertsTime> = HashMap::new();
    for (layer, load) in demand.layers.iter().zip(loads) {
        let experts = known
            .entry((load, Arc::clone(&layer.tiles)))
            .or_insert_with(|| {
                experts_time(demand, cluster, &layer.tiles, load, tokens, local_bandwidth)
            });
        // While the nodes compute, so does the coordinator.
        let meanwhile = time(layer.shared) + experts.local;
        let dense = time(layer.dense);
        all.own += dense + meanwhile;
        all.waiting += (experts.remote - meanwhile).max(0.0);
        all.requests += experts.requests;
        all.replies += experts.replies;
        all.own_link += (experts.requests + experts.replies) / own.link;
        for (sum, link) in all.links.iter_mut().zip(&experts.links) {
            *sum += link;
        }
    }
    let head = demand.head;
    let multiply = 2.0 * head.values as f64 / own.compute;
    all.own += (head.bytes as f64 / own.bandwidth).max(multiply);
    all.seconds = all.own + all.waiting;
    all
}

/// Seconds from the arrival of a prompt to its first token, in steps of at most `chunk` tokens.
#[must_use]
pub(super) fn first_token(
    demand: &Demand,
    cluster: &ClusterSpec,
    loads: &[LayerLoad],
    prompt: usize,
    chunk: usize,
    local_bandwidth: f64,
) -> f64 {
    let chunk = chunk.max(1);
    let time =
        |tokens: usize| predict_step(demand, cluster, loads, tokens, local_bandwidth).seconds;
    let whole = (prompt / chunk) as f64;
    let rest = prompt % chunk;
    let whole_seconds = if whole > 0.0 {
        whole * time(chunk)
    } else {
        0.0
    };
    whole_seconds + if rest > 0 { time(rest) } else { 0.0 }
}

fn experts_time(
    demand: &Demand,
    cluster: &ClusterSpec,
    tiles: &TileCosts,
    load: &LayerLoad,
    tokens: usize,
    local_bandwidth: f64,
) -> ExpertsTime {
    let called = |rects: &Vec<TileRect>| !rects.is_empty();
    let messages: Vec<CallBytes> = load
        .nodes
        .iter()
        .map(|rects| CallBytes::of(demand, tiles, rects, tokens))
        .collect();
    let wires: Vec<f64> = messages
        .iter()
        .zip(&cluster.nodes)
        .map(|(m, node)| (m.request + m.reply) / node.link)
        .collect();
    let bytes: f64 = messages.iter().map(|m| m.request + m.reply).sum();
    let own_wire = bytes / cluster.coordinator.link;
    let calls = load.nodes.iter().filter(|rects| called(rects)).count() as f64;

    let mut chosen = ExpertDraw::new(demand.grid, demand.experts_used);
    let draws = (DRAWS / tokens.max(1)).clamp(8, DRAWS);
    let (mut remote, mut local) = (0.0, 0.0);
    for _ in 0..draws {
        chosen.draw(tokens);
        // When the last reply is there if only the nodes' links count, and when the last node has
        // computed, after which the coordinator's link still has to pass all bytes.
        let (mut alone, mut before) = (0.0f64, 0.0f64);
        for ((node, rects), wire) in cluster.nodes.iter().zip(&load.nodes).zip(&wires) {
            if called(rects) {
                let done = node.rtt + compute_time(tiles, rects, &chosen, node);
                alone = alone.max(done + wire);
                before = before.max(done);
            }
        }
        remote += alone.max(before + own_wire) + calls * CALL_SECONDS;
        let (read, multiplied) = amounts(tiles, &load.local, &chosen);
        local += (read / local_bandwidth).max(multiplied / cluster.coordinator.compute);
    }
    if calls == 0.0 {
        remote = 0.0;
    }
    ExpertsTime {
        remote: remote / draws as f64,
        local: local / draws as f64,
        requests: messages.iter().map(|m| m.request).sum(),
        replies: messages.iter().map(|m| m.reply).sum(),
        links: wires,
    }
}

fn compute_time(
    tiles: &TileCosts,
    rects: &[TileRect],
    chosen: &ExpertDraw,
    node: &NodeNumbers,
) -> f64 {
    let (read, multiplied) = amounts(tiles, rects, chosen);
    (read / node.bandwidth).max(multiplied / node.compute)
}

/// Bytes that are read and operations that are done in `rects` for the tokens of a draw.
fn amounts(tiles: &TileCosts, rects: &[TileRect], chosen: &ExpertDraw) -> (f64, f64) {
    let (mut read, mut multiplied) = (0.0, 0.0);
    for rect in rects {
        let (experts, times) = chosen.in_span(rect.experts.start, rect.experts.end);
        read += (experts * tiles.strip_bytes(*rect)) as f64;
        multiplied += 2.0 * (times * tiles.strip_values(*rect)) as f64;
    }
    (read, multiplied)
}

/// Bytes of one call to one node.
struct CallBytes {
    request: f64,
    reply: f64,
}

impl CallBytes {
    fn of(demand: &Demand, tiles: &TileCosts, rects: &[TileRect], tokens: usize) -> CallBytes {
        /// Expert and weight.
        const ROUTE: u64 = 8;
        /// Four bounds.
        const RECT: u64 = 16;
        /// What frames a message.
        const FRAME: u64 = 64;
        if rects.is_empty() {
            let (request, reply) = (0.0, 0.0);
            return CallBytes { request, reply };
        }
        let token = tiles.input + demand.experts_used as u64 * ROUTE;
        let request = tokens as u64 * token + rects.len() as u64 * RECT + FRAME;
        CallBytes {
            request: request as f64,
            reply: rows(demand, rects) * (tokens * demand.hidden * 4) as f64 + FRAME as f64,
        }
    }
}

/// Rows in the reply for one token, on average: one for each subtree with a chosen expert. That
/// none of `used` different experts out of `experts` is among the `span` of a subtree has the
/// hypergeometric probability
/// `product over i < used of (experts - span - i) / (experts - i)`.
fn rows(demand: &Demand, rects: &[TileRect]) -> f64 {
    let (experts, used) = (f64::from(demand.grid.experts), demand.experts_used);
    let chance = |span: u32| {
        let others = experts - f64::from(span);
        let none = |i: usize| ((others - i as f64) / (experts - i as f64)).max(0.0);
        1.0 - (0..used).map(none).product::<f64>()
    };
    rects
        .iter()
        .flat_map(|rect| rect.subtrees(demand.grid))
        .map(|tree| chance(tree.experts.len()))
        .sum()
}

/// The experts that the tokens of a step choose, drawn at random.
struct ExpertDraw {
    experts_used: usize,
    random: XorShift64Star,
    /// A permutation of all experts, which begins with the last token's choice.
    ids: Vec<u32>,
    /// For each expert, of all experts with a lower id: how many were chosen by at least one
    /// token, and how often they were chosen in all. Length: experts + 1.
    below: Vec<(u64, u64)>,
}

impl ExpertDraw {
    fn new(grid: Grid, experts_used: usize) -> Self {
        ExpertDraw {
            experts_used,
            random: XorShift64Star::new(1),
            ids: (0..grid.experts).collect(),
            below: Vec::new(),
        }
    }

    /// Draws different experts for each token: the first steps of a Fisher-Yates shuffle.
    fn draw(&mut self, tokens: usize) {
        let count = self.ids.len();
        let mut times = vec![0u64; count];
        for _ in 0..tokens {
            for slot in 0..self.experts_used.min(count) {
                let left = (count - slot) as u64;
                let other = slot + (((self.random.next_u64() >> 32) * left) >> 32) as usize;
                self.ids.swap(slot, other);
                times[self.ids[slot] as usize] += 1;
            }
        }
        self.below.clear();
        self.below.push((0, 0));
        let (mut hit, mut chosen) = (0, 0);
        for times in times {
            hit += u64::from(times > 0);
            chosen += times;
            self.below.push((hit, chosen));
        }
    }

    /// How many of the experts `start..end` were chosen, and how often.
    fn in_span(&self, start: u32, end: u32) -> (u64, u64) {
        let (a, b) = (self.below[start as usize], self.below[end as usize]);
        (b.0 - a.0, b.1 - a.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::cluster_spec::{Assumptions, ClusterFile};
    use crate::plan::machine::NodeMachine;
    use crate::plan::test_models::flash;

    fn cluster(nodes: usize) -> ClusterSpec {
        let node = |i: usize| -> NodeMachine {
            let text = format!("name=n{i},memory=256G,bandwidth=40G,link=1000T,rtt=0.2ms");
            text.parse().expect("a machine")
        };
        let listed = ClusterFile {
            coordinator: "bandwidth=40G,link=1000T".parse().expect("a machine"),
            node: (0..nodes).map(node).collect(),
        };
        listed
            .resolve(&Assumptions::default(), None)
            .expect("cluster")
    }

    fn milliseconds(nodes: usize, cut: (u32, u32)) -> f64 {
        let demand = flash();
        let rects = demand.grid.cut(cut.0, cut.1).expect("cut");
        let load = LayerLoad {
            nodes: rects.into_iter().map(|r| vec![r]).collect(),
            local: Vec::new(),
        };
        let loads = vec![load; demand.layers.len()];
        predict_step(&demand, &cluster(nodes), &loads, 1, 1e9).seconds * 1e3
    }

    #[test]
    fn known_figures_of_flash_are_predicted() {
        // 40 GB/s everywhere, 0.2 ms of round trip, links without a limit.
        for (nodes, cut, expected) in [(1, (1, 1), 267.0), (4, (4, 1), 224.0), (4, (1, 4), 205.0)] {
            let found = milliseconds(nodes, cut);
            assert!((found / expected - 1.0f64).abs() < 0.01, "{cut:?}: {found}");
        }
    }

    #[test]
    fn messages_are_counted_to_the_byte() {
        let demand = flash();
        let tiles = &demand.layers[0].tiles;
        let quarter = demand.grid.cut(1, 4).expect("cut")[1];
        let message = CallBytes::of(&demand, tiles, &[quarter], 1);
        assert_eq!(message.request, (16 * 260 + 6 * 8 + 16 + 64) as f64);
        assert_eq!(message.reply, (16384 + 64) as f64);
        // A part of the experts has a row only if one of them was chosen.
        let half = demand.grid.cut(2, 8).expect("cut")[0];
        let expected = 1.0
            - (0..6)
                .map(|i| f64::from(128 - i) / f64::from(256 - i))
                .product::<f64>();
        assert!((rows(&demand, &[half]) - expected).abs() < 1e-12);
    }

    #[test]
    fn draws_choose_different_experts_evenly() {
        let grid = Grid {
            experts: 16,
            blocks: 1,
        };
        let mut chosen = ExpertDraw::new(grid, 4);
        let mut hits = 0;
        for _ in 0..4000 {
            chosen.draw(1);
            assert_eq!(chosen.in_span(0, 16), (4, 4));
            hits += chosen.in_span(3, 4).0;
        }
        assert!((800..1200).contains(&hits), "{hits}");
        chosen.draw(100);
        assert_eq!(chosen.in_span(0, 16), (16, 400));
    }

    #[test]
    fn a_slow_link_and_a_slow_disk_show() {
        let demand = flash();
        let mut slow = cluster(4);
        let rects = demand.grid.cut(1, 4).expect("cut");
        let mut load = LayerLoad {
            nodes: rects.into_iter().map(|r| vec![r]).collect(),
            local: Vec::new(),
        };
        let time = |cluster: &ClusterSpec, load: &LayerLoad| {
            let loads = vec![load.clone(); demand.layers.len()];
            predict_step(&demand, cluster, &loads, 1, 5e8)
        };
        let base = time(&slow, &load);
        slow.coordinator.link = 1.25e8;
        let linked = time(&slow, &load);
        // 43 layers of four rows at 1 Gbit/s.
        let rows = 43.0 * 4.0 * 16384.0 / 1.25e8;
        assert!(
            linked.seconds > base.seconds + 0.9 * rows,
            "{}",
            linked.seconds
        );
        load.local = std::mem::take(&mut load.nodes[3]);
        let lost = time(&slow, &load);
        assert!(lost.seconds > 1.8, "a quarter from disk: {}", lost.seconds);
        assert!(lost.requests < linked.requests);
    }
}
