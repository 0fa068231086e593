//! The model of time: what a step of some tokens takes on a cluster.
//!
//! ```text
//! step  = sum over layers of (dense + max(shared, experts)) + head
//! dense = max(bytes / coordinator's bandwidth, operations / its rate); shared and head alike
//! experts = max over nodes of (round trip + max(read, multiply) + wire) + CPU of the calls
//! wire  = bytes of request and reply / link; all nodes' bytes pass the coordinator's link
//! ```
//!
//! What a node reads depends on the experts that the tokens choose. They are drawn evenly, by a
//! generator with a fixed seed, and the slowest node's time is averaged over the draws.

use std::collections::HashMap;
use std::sync::Arc;

use ds4_common::model::Amount;
use ds4_common::tiles::{Grid, TileRect};

use super::cluster::{Cluster, NodeNumbers};
use super::demand::{Demand, TileCosts};
use crate::sampling::XorShift64Star;

/// CPU of the coordinator for one call to one node, in seconds: encoding, two system calls, waking.
pub const CALL_SECONDS: f64 = 50e-6;

/// Draws of one token's experts; of more tokens, accordingly fewer.
const DRAWS: usize = 1024;

/// Who computes a layer's tiles.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Work {
    /// By node.
    pub nodes: Vec<Vec<TileRect>>,
    /// What the coordinator computes from its own file.
    pub local: Vec<TileRect>,
}

/// What a step takes, in seconds and bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    pub seconds: f64,
    /// Time in which the coordinator works, waiting not counted.
    pub own: f64,
    /// Time in which it only waits for experts.
    pub waiting: f64,
    /// Sent to nodes.
    pub requests: f64,
    /// Received from nodes.
    pub replies: f64,
    /// Time that the messages take on the coordinator's link.
    pub own_link: f64,
    /// Time that they take on each node's link.
    pub links: Vec<f64>,
}

/// What the routed experts of a layer cost.
#[derive(Clone, Debug)]
struct Experts {
    /// Averages of the nodes' time and of the coordinator's, in seconds.
    remote: f64,
    local: f64,
    requests: f64,
    replies: f64,
    links: Vec<f64>,
}

/// Predicts a step of `tokens` tokens. `works` has one entry a layer; `local_bandwidth` is the rate
/// at which the coordinator reads experts.
#[must_use]
pub fn step(
    demand: &Demand,
    cluster: &Cluster,
    works: &[Work],
    tokens: usize,
    local_bandwidth: f64,
) -> Step {
    let own = &cluster.coordinator;
    let time = |amount: Amount| {
        let read = amount.bytes as f64 / own.bandwidth;
        read.max(2.0 * (amount.values * tokens as u64) as f64 / own.compute)
    };
    let mut all = Step {
        links: vec![0.0; cluster.nodes.len()],
        ..Step::default()
    };
    let mut known: HashMap<(&Work, Arc<TileCosts>), Experts> = HashMap::new();
    for (layer, work) in demand.layers.iter().zip(works) {
        let experts = known
            .entry((work, Arc::clone(&layer.tiles)))
            .or_insert_with(|| {
                experts(demand, cluster, &layer.tiles, work, tokens, local_bandwidth)
            });
        let (dense, shadow) = (time(layer.dense), time(layer.shared) + experts.local);
        all.own += dense + shadow;
        all.waiting += (experts.remote - shadow).max(0.0);
        all.requests += experts.requests;
        all.replies += experts.replies;
        all.own_link += (experts.requests + experts.replies) / own.link;
        for (sum, link) in all.links.iter_mut().zip(&experts.links) {
            *sum += link;
        }
    }
    // Only the last position's logits are wanted.
    let head = demand.head;
    let multiply = 2.0 * head.values as f64 / own.compute;
    all.own += (head.bytes as f64 / own.bandwidth).max(multiply);
    all.seconds = all.own + all.waiting;
    all
}

/// Time from a prompt's arrival to its first token, in chunks of at most `chunk` tokens.
#[must_use]
pub(super) fn first_token(
    demand: &Demand,
    cluster: &Cluster,
    works: &[Work],
    prompt: usize,
    chunk: usize,
    local_bandwidth: f64,
) -> f64 {
    let chunk = chunk.max(1);
    let time = |tokens: usize| step(demand, cluster, works, tokens, local_bandwidth).seconds;
    let whole = (prompt / chunk) as f64;
    let rest = prompt % chunk;
    let whole_seconds = if whole > 0.0 {
        whole * time(chunk)
    } else {
        0.0
    };
    whole_seconds + if rest > 0 { time(rest) } else { 0.0 }
}

fn experts(
    demand: &Demand,
    cluster: &Cluster,
    tiles: &TileCosts,
    work: &Work,
    tokens: usize,
    local_bandwidth: f64,
) -> Experts {
    let called = |rects: &Vec<TileRect>| !rects.is_empty();
    let messages: Vec<Message> = work
        .nodes
        .iter()
        .map(|rects| Message::of(demand, tiles, rects, tokens))
        .collect();
    let wires: Vec<f64> = messages
        .iter()
        .zip(&cluster.nodes)
        .map(|(m, node)| (m.request + m.reply) / node.link)
        .collect();
    let bytes: f64 = messages.iter().map(|m| m.request + m.reply).sum();
    let own_wire = bytes / cluster.coordinator.link;
    let calls = work.nodes.iter().filter(|rects| called(rects)).count() as f64;

    let mut routing = Routing::new(demand.grid, demand.used);
    let draws = (DRAWS / tokens.max(1)).clamp(8, DRAWS);
    let (mut remote, mut local) = (0.0, 0.0);
    for _ in 0..draws {
        routing.draw(tokens);
        // The last reply, if each link were alone, and the last work before all pass one link.
        let (mut alone, mut before) = (0.0f64, 0.0f64);
        for ((node, rects), wire) in cluster.nodes.iter().zip(&work.nodes).zip(&wires) {
            if called(rects) {
                let done = node.rtt + compute_time(tiles, rects, &routing, node);
                alone = alone.max(done + wire);
                before = before.max(done);
            }
        }
        remote += alone.max(before + own_wire) + calls * CALL_SECONDS;
        let (read, multiplied) = amounts(tiles, &work.local, &routing);
        local += (read / local_bandwidth).max(multiplied / cluster.coordinator.compute);
    }
    if calls == 0.0 {
        remote = 0.0;
    }
    Experts {
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
    routing: &Routing,
    node: &NodeNumbers,
) -> f64 {
    let (read, multiplied) = amounts(tiles, rects, routing);
    (read / node.bandwidth).max(multiplied / node.compute)
}

/// Bytes that are read and operations that are done for the tokens of a draw.
fn amounts(tiles: &TileCosts, rects: &[TileRect], routing: &Routing) -> (f64, f64) {
    let (mut read, mut multiplied) = (0.0, 0.0);
    for rect in rects {
        let (hit, chosen) = routing.in_span(rect.experts.start, rect.experts.end);
        read += (hit * tiles.strip_bytes(*rect)) as f64;
        multiplied += 2.0 * (chosen * tiles.strip_values(*rect)) as f64;
    }
    (read, multiplied)
}

/// One call to one node, in bytes.
struct Message {
    request: f64,
    reply: f64,
}

impl Message {
    fn of(demand: &Demand, tiles: &TileCosts, rects: &[TileRect], tokens: usize) -> Message {
        /// Expert and weight of a route, a rectangle, and what frames a message.
        const ROUTE: u64 = 8;
        const RECT: u64 = 16;
        const FRAME: u64 = 64;
        if rects.is_empty() {
            let (request, reply) = (0.0, 0.0);
            return Message { request, reply };
        }
        let token = tiles.input + demand.used as u64 * ROUTE;
        let request = tokens as u64 * token + rects.len() as u64 * RECT + FRAME;
        Message {
            request: request as f64,
            reply: rows(demand, rects) * (tokens * demand.hidden * 4) as f64 + FRAME as f64,
        }
    }
}

/// Rows that a token's reply has on average: one a subtree with a chosen expert.
fn rows(demand: &Demand, rects: &[TileRect]) -> f64 {
    let (experts, used) = (f64::from(demand.grid.experts), demand.used);
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

/// The experts that some tokens chose.
struct Routing {
    used: usize,
    random: XorShift64Star,
    /// A permutation; its head is the last token's choice.
    ids: Vec<u32>,
    /// Below each expert: how many were chosen by some token, and how often in all.
    below: Vec<(u64, u64)>,
}

impl Routing {
    fn new(grid: Grid, used: usize) -> Self {
        Routing {
            used,
            random: XorShift64Star::new(1),
            ids: (0..grid.experts).collect(),
            below: Vec::new(),
        }
    }

    fn draw(&mut self, tokens: usize) {
        let count = self.ids.len();
        let mut times = vec![0u64; count];
        for _ in 0..tokens {
            for slot in 0..self.used.min(count) {
                let left = (count - slot) as u64;
                let other = slot + (((self.random.next() >> 32) * left) >> 32) as usize;
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

    fn in_span(&self, start: u32, end: u32) -> (u64, u64) {
        let (a, b) = (self.below[start as usize], self.below[end as usize]);
        (b.0 - a.0, b.1 - a.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::cluster::{Assumptions, ClusterFile};
    use crate::plan::machine::Machine;
    use crate::plan::test_models::flash;

    fn cluster(nodes: usize) -> Cluster {
        let node = |i: usize| -> Machine {
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
        let work = Work {
            nodes: rects.into_iter().map(|r| vec![r]).collect(),
            local: Vec::new(),
        };
        let works = vec![work; demand.layers.len()];
        step(&demand, &cluster(nodes), &works, 1, 1e9).seconds * 1e3
    }

    #[test]
    fn known_figures_of_flash_are_met() {
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
        let message = Message::of(&demand, tiles, &[quarter], 1);
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
        let mut routing = Routing::new(grid, 4);
        let mut hits = 0;
        for _ in 0..4000 {
            routing.draw(1);
            assert_eq!(routing.in_span(0, 16), (4, 4));
            hits += routing.in_span(3, 4).0;
        }
        assert!((800..1200).contains(&hits), "{hits}");
        routing.draw(100);
        assert_eq!(routing.in_span(0, 16), (16, 400));
    }

    #[test]
    fn a_slow_link_and_a_slow_disk_show() {
        let demand = flash();
        let mut slow = cluster(4);
        let rects = demand.grid.cut(1, 4).expect("cut");
        let mut work = Work {
            nodes: rects.into_iter().map(|r| vec![r]).collect(),
            local: Vec::new(),
        };
        let works = |work: &Work| vec![work.clone(); demand.layers.len()];
        let time = |cluster: &Cluster, work: &Work| step(&demand, cluster, &works(work), 1, 5e8);
        let base = time(&slow, &work);
        slow.coordinator.link = 1.25e8;
        let linked = time(&slow, &work);
        // 43 layers of four rows at 1 Gbit/s.
        let rows = 43.0 * 4.0 * 16384.0 / 1.25e8;
        assert!(
            linked.seconds > base.seconds + 0.9 * rows,
            "{}",
            linked.seconds
        );
        work.local = std::mem::take(&mut work.nodes[3]);
        let lost = time(&slow, &work);
        assert!(lost.seconds > 1.8, "a quarter from disk: {}", lost.seconds);
        assert!(lost.requests < linked.requests);
    }
}
