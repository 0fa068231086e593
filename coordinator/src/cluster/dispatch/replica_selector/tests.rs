use super::*;
use ds4_common::tiles::{Grid, Holdings, Span};

use crate::cluster::transport::{CallError, CallId, CancelReason, ExpertCall, NodeLink};

const GRID: Grid = Grid {
    experts: 8,
    blocks: 4,
};
const SHAPE: MoeShape = MoeShape {
    layers: 6,
    hidden: 8,
    experts_used: 2,
    grid: GRID,
};
const MS: Duration = Duration::from_millis(1);

#[derive(Debug)]
struct Nowhere;

impl NodeLink for Nowhere {
    fn send(&self, _: ExpertCall) -> Result<CallId, CallError> {
        Err(CallError::Busy)
    }

    fn cancel(&self, _: CallId, _: CancelReason) {}
}

fn rect(experts: std::ops::Range<u32>, blocks: std::ops::Range<u32>) -> TileRect {
    TileRect {
        experts: Span::new(experts.start, experts.end),
        blocks: Span::new(blocks.start, blocks.end),
    }
}

fn view(epoch: u64, held: &[Vec<TileRect>]) -> Arc<ClusterView> {
    let node = |(i, rects): (usize, &Vec<TileRect>)| LiveNode {
        id: NodeId(i as u64 + 1),
        name: format!("node-{}", i + 1).into(),
        held: Arc::new(Holdings::new(GRID, vec![rects.clone(); SHAPE.layers]).expect("tiles")),
        link: Arc::new(Nowhere),
    };
    Arc::new(ClusterView {
        epoch,
        nodes: held.iter().enumerate().map(node).collect(),
        absent: Vec::new(),
    })
}

fn selector(local_fallback: bool) -> ReplicaSelector {
    let term = Duration::from_secs(60);
    ReplicaSelector::new(SHAPE, None, LatenessLimits::default(), local_fallback, term)
}

/// Names of the replicas, and the number of tiles that each computes.
fn summary(plan: &DispatchPlan) -> Vec<(String, u64)> {
    plan.shares
        .iter()
        .map(|(replica, tiles)| (name(replica), tiles.tiles()))
        .collect()
}

fn name(replica: &Option<Replica>) -> String {
    match replica {
        Some(Replica::Node(node)) => node.name.to_string(),
        Some(Replica::Local) => "local".to_owned(),
        None => "none".to_owned(),
    }
}

fn pairs(list: &[(&str, u64)]) -> Vec<(String, u64)> {
    let pair = |(name, tiles): &(&str, u64)| ((*name).to_owned(), *tiles);
    list.iter().map(pair).collect()
}

#[test]
fn plans_last_until_nodes_or_their_health_change() {
    let now = Instant::now();
    let mut selector = selector(false);
    let whole = vec![GRID.whole()];
    selector.update_view(&view(1, &[whole.clone(), whole.clone()]), now);
    let first = selector.plan(0, now).expect("plan");
    assert_eq!(summary(&first), pairs(&[("node-1", 16), ("node-2", 16)]));
    let other_layer = selector.plan(5, now).expect("plan");
    assert!(Arc::ptr_eq(&first, &other_layer), "all layers are alike");
    assert!(selector.demote(NodeId(2), HealthState::Slow, now));
    let second = selector.plan(0, now).expect("plan");
    assert_eq!(summary(&second), pairs(&[("node-1", 32)]));
    selector.answered(NodeId(2), 12, MS, now);
    let third = selector.plan(0, now).expect("plan");
    assert_eq!(summary(&third), summary(&first));
    selector.update_view(&view(2, &[whole]), now);
    let fourth = selector.plan(0, now).expect("plan");
    assert_eq!(summary(&fourth), pairs(&[("node-1", 32)]));
}

#[test]
fn an_unresponsive_node_comes_last_and_the_local_fallback_before_it() {
    let now = Instant::now();
    let halves = GRID.cut(1, 2).expect("cut");
    let held = [vec![halves[0]], vec![halves[1]]];
    for (local_fallback, state, computes) in [
        (false, HealthState::Slow, "node-2"),
        (false, HealthState::Unresponsive, "node-2"),
        (true, HealthState::Healthy, "node-2"),
        (true, HealthState::Slow, "node-2"),
        (true, HealthState::Unresponsive, "local"),
    ] {
        let mut selector = selector(local_fallback);
        selector.update_view(&view(1, &held), now);
        selector.demote(NodeId(2), state, now);
        let plan = selector.plan(0, now).expect("plan");
        let expected = pairs(&[("node-1", 16), (computes, 16)]);
        assert_eq!(summary(&plan), expected, "{local_fallback} {state:?}");
    }
    let mut selector = selector(false);
    selector.update_view(&view(1, &held[..1]), now);
    let plan = selector.plan(0, now).expect("plan");
    assert_eq!(summary(&plan), pairs(&[("node-1", 16), ("none", 16)]));
}

#[test]
fn failover_takes_one_replica_or_several() {
    let now = Instant::now();
    let (top, bottom) = (rect(0..4, 0..4), rect(4..8, 0..4));
    let held = [
        vec![GRID.whole()],
        vec![top],
        vec![bottom],
        vec![GRID.whole()],
    ];
    let mut selector = selector(true);
    selector.update_view(&view(1, &held), now);
    let strip = [rect(0..8, 1..2)];
    let replicas =
        |selector: &ReplicaSelector, excluded: &[u64], reach| -> Vec<(String, Vec<TileRect>)> {
            let excluded: Vec<NodeId> = excluded.iter().map(|id| NodeId(*id)).collect();
            let found = selector.replicas_of(0, &strip, &excluded, 8, reach);
            found.iter().map(|(p, r)| (name(p), r.clone())).collect()
        };
    let all = strip.to_vec();
    assert_eq!(
        replicas(&selector, &[1], Reach::AllReplicas),
        [("node-4".to_owned(), all.clone())]
    );
    selector.sent(NodeId(1), 100);
    assert_eq!(
        replicas(&selector, &[], Reach::AllReplicas),
        [("node-4".to_owned(), all.clone())],
        "less loaded"
    );
    let halves = [
        ("node-2".to_owned(), vec![rect(0..4, 1..2)]),
        ("node-3".to_owned(), vec![rect(4..8, 1..2)]),
    ];
    assert_eq!(replicas(&selector, &[1, 4], Reach::HealthyNodes), halves);
    let with_local = [
        ("node-2".to_owned(), vec![rect(0..4, 1..2)]),
        ("local".to_owned(), vec![rect(4..8, 1..2)]),
    ];
    assert_eq!(
        replicas(&selector, &[1, 3, 4], Reach::AllReplicas),
        with_local
    );
    let without = replicas(&selector, &[1, 3, 4], Reach::HealthyNodes);
    assert_eq!(without[1].0, "none");
    assert_eq!(
        replicas(&selector, &[1, 2, 3, 4], Reach::AllReplicas),
        [("local".to_owned(), all)]
    );
}

#[test]
fn calls_stay_below_what_fits_into_a_message() {
    let now = Instant::now();
    let mut selector = selector(false);
    // Experts 1..8 of four blocks are three subtrees a block.
    selector.update_view(
        &view(1, &[vec![rect(0..1, 0..4)], vec![rect(1..8, 0..4)]]),
        now,
    );
    let blocks: Vec<TileRect> = (0..4).map(|b| rect(1..8, b..b + 1)).collect();
    let mut rects = blocks.clone();
    rects.push(rect(0..1, 0..4));
    let found = selector.replicas_of(0, &rects, &[], 6, Reach::AllReplicas);
    let sizes: Vec<(String, usize)> = found.iter().map(|(p, r)| (name(p), r.len())).collect();
    let expected = [("node-2", 2), ("node-2", 2), ("node-1", 1)];
    assert_eq!(sizes, expected.map(|(n, r)| (n.to_owned(), r)));
}

#[test]
fn faster_nodes_get_more_and_far_slower_ones_are_left_out() {
    let mut now = Instant::now();
    let whole = vec![GRID.whole()];
    let mut selector = selector(false);
    selector.update_view(&view(1, &[whole.clone(), whole.clone(), whole]), now);
    selector.plan(0, now).expect("plan");
    for _ in 0..100 {
        selector.answered(NodeId(1), 12, 10 * MS, now);
        selector.answered(NodeId(2), 12, 22 * MS, now);
        selector.answered(NodeId(3), 12, 1000 * MS, now);
    }
    now += WEIGH_INTERVAL;
    let plan = selector.plan(0, now).expect("plan");
    let summary = summary(&plan);
    assert_eq!(summary, pairs(&[("node-1", 24), ("node-2", 8)]));
    let due = selector.due_probes(now + 200 * MS);
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].id, NodeId(3));
    let late = selector.late_after(NodeId(3), 12);
    assert!(late > Duration::from_secs(1), "it is always slow: {late:?}");
}
