use super::*;
use ds4_common::expert::MoeShape;
use ds4_common::tiles::{Grid, Holdings, Span};

use crate::cluster::fabric::{Call, CallError, CallId, Forgotten, Link};

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

impl Link for Nowhere {
    fn send(&self, _: Call) -> Result<CallId, CallError> {
        Err(CallError::Busy)
    }

    fn cancel(&self, _: CallId, _: Forgotten) {}
}

fn rect(experts: std::ops::Range<u32>, blocks: std::ops::Range<u32>) -> TileRect {
    TileRect {
        experts: Span::new(experts.start, experts.end),
        blocks: Span::new(blocks.start, blocks.end),
    }
}

fn view(epoch: u64, held: &[Vec<TileRect>]) -> Arc<View> {
    let node = |(i, rects): (usize, &Vec<TileRect>)| ViewNode {
        id: NodeId(i as u64 + 1),
        name: format!("node-{}", i + 1).into(),
        held: Arc::new(Holdings::new(GRID, vec![rects.clone(); SHAPE.layers]).expect("tiles")),
        link: Arc::new(Nowhere),
    };
    Arc::new(View {
        epoch,
        nodes: held.iter().enumerate().map(node).collect(),
        absent: Vec::new(),
    })
}

fn router(own: bool) -> Router {
    Router::new(SHAPE, None, LatenessLimits::default(), own)
}

/// Names of the places and the tiles that each computes.
fn summary(plan: &Plan) -> Vec<(String, u64)> {
    plan.shares
        .iter()
        .map(|(place, tiles)| (name(place), tiles.tiles()))
        .collect()
}

fn name(place: &Place) -> String {
    match place {
        Place::Node(node) => node.name.to_string(),
        Place::Own => "own".to_owned(),
        Place::Nobody => "nobody".to_owned(),
    }
}

fn pairs(list: &[(&str, u64)]) -> Vec<(String, u64)> {
    let pair = |(name, tiles): &(&str, u64)| ((*name).to_owned(), *tiles);
    list.iter().map(pair).collect()
}

#[test]
fn plans_last_until_nodes_or_their_standing_change() {
    let now = Instant::now();
    let mut router = router(false);
    let whole = vec![GRID.whole()];
    router.see(&view(1, &[whole.clone(), whole.clone()]), now);
    let first = router.plan(0, now).expect("plan");
    assert_eq!(summary(&first), pairs(&[("node-1", 16), ("node-2", 16)]));
    let other_layer = router.plan(5, now).expect("plan");
    assert!(Arc::ptr_eq(&first, &other_layer), "all layers are alike");
    assert!(router.demote(NodeId(2), Standing::Slow, now));
    let second = router.plan(0, now).expect("plan");
    assert_eq!(summary(&second), pairs(&[("node-1", 32)]));
    router.answered(NodeId(2), 12, MS, now);
    let third = router.plan(0, now).expect("plan");
    assert_eq!(summary(&third), summary(&first));
    router.see(&view(2, &[whole]), now);
    let fourth = router.plan(0, now).expect("plan");
    assert_eq!(summary(&fourth), pairs(&[("node-1", 32)]));
}

#[test]
fn a_silent_node_is_the_last_resort_and_the_own_file_the_one_before() {
    let now = Instant::now();
    let halves = GRID.cut(1, 2).expect("cut");
    let held = [vec![halves[0]], vec![halves[1]]];
    for (own, standing, computes) in [
        (false, Standing::Slow, "node-2"),
        (false, Standing::Silent, "node-2"),
        (true, Standing::Good, "node-2"),
        (true, Standing::Slow, "node-2"),
        (true, Standing::Silent, "own"),
    ] {
        let mut router = router(own);
        router.see(&view(1, &held), now);
        router.demote(NodeId(2), standing, now);
        let plan = router.plan(0, now).expect("plan");
        let expected = pairs(&[("node-1", 16), (computes, 16)]);
        assert_eq!(summary(&plan), expected, "{own} {standing:?}");
    }
    let mut router = router(false);
    router.see(&view(1, &held[..1]), now);
    let plan = router.plan(0, now).expect("plan");
    assert_eq!(summary(&plan), pairs(&[("node-1", 16), ("nobody", 16)]));
}

#[test]
fn work_goes_elsewhere_in_one_piece_or_in_parts() {
    let now = Instant::now();
    let (top, bottom) = (rect(0..4, 0..4), rect(4..8, 0..4));
    let held = [
        vec![GRID.whole()],
        vec![top],
        vec![bottom],
        vec![GRID.whole()],
    ];
    let mut router = router(true);
    router.see(&view(1, &held), now);
    let strip = [rect(0..8, 1..2)];
    let places = |router: &Router, banned: &[u64], reach| -> Vec<(String, Vec<TileRect>)> {
        let banned: Vec<NodeId> = banned.iter().map(|id| NodeId(*id)).collect();
        let found = router.elsewhere(0, &strip, &banned, 8, reach);
        found.iter().map(|(p, r)| (name(p), r.clone())).collect()
    };
    let all = strip.to_vec();
    assert_eq!(
        places(&router, &[1], Reach::All),
        [("node-4".to_owned(), all.clone())]
    );
    router.sent(NodeId(1), 100);
    assert_eq!(
        places(&router, &[], Reach::All),
        [("node-4".to_owned(), all.clone())],
        "less loaded"
    );
    let halves = [
        ("node-2".to_owned(), vec![rect(0..4, 1..2)]),
        ("node-3".to_owned(), vec![rect(4..8, 1..2)]),
    ];
    assert_eq!(places(&router, &[1, 4], Reach::Nodes), halves);
    let with_own = [
        ("node-2".to_owned(), vec![rect(0..4, 1..2)]),
        ("own".to_owned(), vec![rect(4..8, 1..2)]),
    ];
    assert_eq!(places(&router, &[1, 3, 4], Reach::All), with_own);
    let without = places(&router, &[1, 3, 4], Reach::Nodes);
    assert_eq!(without[1].0, "nobody");
    assert_eq!(
        places(&router, &[1, 2, 3, 4], Reach::All),
        [("own".to_owned(), all)]
    );
}

#[test]
fn parts_stay_below_what_fits_into_a_message() {
    let now = Instant::now();
    let mut router = router(false);
    // Experts 1..8 of four blocks are three subtrees a block.
    router.see(
        &view(1, &[vec![rect(0..1, 0..4)], vec![rect(1..8, 0..4)]]),
        now,
    );
    let blocks: Vec<TileRect> = (0..4).map(|b| rect(1..8, b..b + 1)).collect();
    let mut rects = blocks.clone();
    rects.push(rect(0..1, 0..4));
    let found = router.elsewhere(0, &rects, &[], 6, Reach::All);
    let sizes: Vec<(String, usize)> = found.iter().map(|(p, r)| (name(p), r.len())).collect();
    let expected = [("node-2", 2), ("node-2", 2), ("node-1", 1)];
    assert_eq!(sizes, expected.map(|(n, r)| (n.to_owned(), r)));
}

#[test]
fn faster_nodes_get_more_and_far_slower_ones_are_left_out() {
    let mut now = Instant::now();
    let whole = vec![GRID.whole()];
    let mut router = router(false);
    router.see(&view(1, &[whole.clone(), whole.clone(), whole]), now);
    router.plan(0, now).expect("plan");
    for _ in 0..100 {
        router.answered(NodeId(1), 12, 10 * MS, now);
        router.answered(NodeId(2), 12, 22 * MS, now);
        router.answered(NodeId(3), 12, 1000 * MS, now);
    }
    now += WEIGH_INTERVAL;
    let plan = router.plan(0, now).expect("plan");
    let summary = summary(&plan);
    assert_eq!(summary, pairs(&[("node-1", 24), ("node-2", 8)]));
    let due = router.due_probes(now + 200 * MS);
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].id, NodeId(3));
    let late = router.late_after(NodeId(3), 12);
    assert!(late > Duration::from_secs(1), "it is always slow: {late:?}");
}
