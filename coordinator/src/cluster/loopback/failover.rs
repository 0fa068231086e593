//! Nodes that die, hang, slow down and recover while requests run: another replica gives the same
//! bits.

use std::sync::atomic::{AtomicBool, Ordering};

use super::relay::Relay;
use super::*;
use crate::cluster::health_state::HealthState;

const HANG: u64 = 30_000;

/// Lets the dispatcher learn how fast its nodes are.
fn warm_up(backend: &ClusterBackend) {
    for i in 0..40 {
        check(backend, &batch(i % SHAPE.layers, 2));
    }
}

fn health_state(backend: &ClusterBackend, node: usize) -> HealthState {
    backend.health_states()[node].1
}

#[test]
fn a_replica_takes_over_from_a_node_that_dies_in_the_middle_of_a_call() {
    let mut cluster = Cluster::whole(2);
    let backend = cluster.connect(None).expect("cluster");
    warm_up(&backend);
    cluster.node_knobs[0].delay_ms.store(HANG, Ordering::SeqCst);
    let batch = batch(1, 3);
    let begun = cluster.node_knobs[0].begun.load(Ordering::SeqCst);
    let pending = backend.begin(Arc::clone(&batch)).expect("begun");
    wait_until("the call computes", || {
        cluster.node_knobs[0].begun.load(Ordering::SeqCst) > begun
    });
    drop(cluster.nodes.remove(0));
    let mut out = vec![0.0; batch.tokens * SHAPE.hidden];
    pending.finish(&|| false, &mut out).expect("rows");
    assert_eq!(bits(&out), bits(&alone(&batch)));
    cluster.node_knobs[0].delay_ms.store(0, Ordering::SeqCst);
    for layer in 0..SHAPE.layers {
        check(&backend, &super::batch(layer, 2));
    }
}

#[test]
fn a_lost_share_is_split_among_several_replicas() {
    let thirds = GRID.cut(3, 1).expect("cut");
    let mut cluster = Cluster::with_nodes(&[
        vec![GRID.whole()],
        vec![thirds[0], thirds[1]],
        vec![thirds[1], thirds[2]],
    ]);
    let (backend, fallback) = cluster.connect_with_fallback(&cluster.options());
    warm_up(&backend);
    drop(cluster.nodes.remove(0));
    for i in 0..8 {
        check(&backend, &batch(i % SHAPE.layers, 5));
    }
    assert_eq!(
        fallback.computed.load(Ordering::SeqCst),
        0,
        "replicas hold it all"
    );
}

#[test]
fn a_late_answer_gets_a_hedge_and_the_first_answer_wins() {
    let cluster = Cluster::whole(2);
    let backend = cluster.connect(None).expect("cluster");
    warm_up(&backend);
    cluster.node_knobs[1].delay_ms.store(HANG, Ordering::SeqCst);
    // The coordinator waits for its deadline of 20 s, or gets the rows elsewhere.
    let start = Instant::now();
    check(&backend, &batch(2, 2));
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(health_state(&backend, 1) >= HealthState::Slow);
    let calls = cluster.node_knobs[1].begun.load(Ordering::SeqCst);
    for i in 0..20 {
        check(&backend, &batch(i % SHAPE.layers, 2));
    }
    assert!(
        cluster.node_knobs[1].begun.load(Ordering::SeqCst) <= calls + 1,
        "a node that hangs gets no work"
    );
    cluster.node_knobs[1].delay_ms.store(0, Ordering::SeqCst);
    work_until("it is healthy again", &backend, || {
        health_state(&backend, 1) == HealthState::Healthy
    });
    let calls = cluster.node_knobs[1].begun.load(Ordering::SeqCst);
    warm_up(&backend);
    assert!(cluster.node_knobs[1].begun.load(Ordering::SeqCst) >= calls + 20);
}

#[test]
fn the_local_fallback_computes_what_a_hanging_node_alone_holds() {
    let strips = GRID.cut(1, 3).expect("cut");
    let cluster = Cluster::with_nodes(&[vec![strips[0]], vec![strips[1], strips[2]]]);
    let (backend, fallback) = cluster.connect_with_fallback(&cluster.options());
    warm_up(&backend);
    cluster.node_knobs[1].delay_ms.store(HANG, Ordering::SeqCst);
    let start = Instant::now();
    check(&backend, &batch(0, 2));
    assert!(start.elapsed() < Duration::from_secs(10));
    // Some of the warm-up may have been late as well.
    wait_until("it is unresponsive", || {
        check(&backend, &batch(0, 2));
        health_state(&backend, 1) == HealthState::Unresponsive
    });
    assert!(fallback.computed.load(Ordering::SeqCst) >= 2);
    cluster.node_knobs[1].delay_ms.store(0, Ordering::SeqCst);
    work_until("it is healthy again", &backend, || {
        health_state(&backend, 1) == HealthState::Healthy
    });
}

#[test]
fn without_replica_and_fallback_the_error_names_node_layer_and_tiles() {
    let strips = GRID.cut(1, 3).expect("cut");
    let mut cluster = Cluster::with_nodes(&[vec![strips[0], strips[1]], vec![strips[2]]]);
    let options = ClusterOptions {
        deadline: Duration::from_millis(400),
        ..cluster.options()
    };
    let backend = cluster.connect_with(&options).expect("cluster");
    let address = cluster.addresses()[1].clone();
    let node = cluster.nodes.remove(1);
    cluster.runtime.block_on(node.stop());
    wait_until("the loss is seen", || unavailable(&backend).len() == 1);
    let error = compute(&backend, &batch(3, 9)).expect_err("no replica");
    let text = error.to_string();
    assert!(
        matches!(error, ExpertError::Unreachable { layer: 3, .. }),
        "{text}"
    );
    assert!(text.contains(&address), "{text}");
    assert!(text.contains("experts 0..6 blocks 2..3"), "{text}");
}

#[test]
fn the_local_fallback_is_given_up_between_rectangles() {
    let cluster = Cluster::with_nodes(&[vec![GRID.cut(6, 1).expect("cut")[0]]]);
    let (backend, fallback) = cluster.connect_with_fallback(&cluster.options());
    fallback.delay_ms.store(50, Ordering::SeqCst);
    let batch = batch(0, 4);
    let unwanted = AtomicBool::new(false);
    let give_up = || {
        // The second time it is asked is after the first rectangle.
        unwanted.swap(
            fallback.computed.load(Ordering::SeqCst) > 0,
            Ordering::SeqCst,
        )
    };
    let pending = backend.begin(Arc::clone(&batch)).expect("begun");
    let mut out = vec![0.0; batch.tokens * SHAPE.hidden];
    let error = pending.finish(&give_up, &mut out).expect_err("given up");
    assert!(matches!(error, ExpertError::GivenUp), "{error}");
    assert!(fallback.computed.load(Ordering::SeqCst) < 3);
}

#[test]
fn a_silent_cut_is_hedged_detected_and_healed() {
    let cluster = Cluster::whole(2);
    let relay = Relay::start(&cluster.runtime, cluster.addresses()[0].clone());
    let options = ClusterOptions {
        nodes: vec![relay.address.clone(), cluster.addresses()[1].clone()],
        ..quick()
    };
    let backend = cluster.connect_with(&options).expect("cluster");
    warm_up(&backend);
    relay.cut(true);
    let start = Instant::now();
    check(&backend, &batch(1, 2));
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    work_until("the connection counts as dead", &backend, || {
        unavailable(&backend).len() == 1
    });
    relay.cut(false);
    work_until("the connection is made again", &backend, || {
        unavailable(&backend).is_empty()
    });
    let calls = cluster.node_knobs[0].begun.load(Ordering::SeqCst);
    warm_up(&backend);
    assert!(cluster.node_knobs[0].begun.load(Ordering::SeqCst) > calls + 20);
}

#[test]
fn hedges_are_bounded_when_everything_is_slow() {
    let cluster = Cluster::whole(2);
    let backend = cluster.connect(None).expect("cluster");
    warm_up(&backend);
    let calls = || -> u64 {
        let begun = |k: &Arc<Knobs>| k.begun.load(Ordering::SeqCst);
        cluster.node_knobs.iter().map(begun).sum()
    };
    let before = calls();
    // Late by what was measured, but not unresponsive.
    cluster.knobs.delay_ms.store(60, Ordering::SeqCst);
    for i in 0..40 {
        check(&backend, &batch(i % SHAPE.layers, 2));
    }
    // 80 calls if both work, a tenth on top, the burst, and some probes.
    assert!(calls() - before <= 80 + 8 + 16 + 12, "{}", calls() - before);
}

#[test]
fn stranded_tiles_are_cut_as_the_returning_node_holds_them() {
    let strips = GRID.cut(1, 3).expect("cut");
    // The second node holds its two strips separately, so that no call may have both in one
    // rectangle.
    let mut cluster = Cluster::with_nodes(&[vec![strips[0]], vec![strips[1], strips[2]]]);
    let backend = cluster.connect(None).expect("cluster");
    let node = cluster.nodes.remove(1);
    let address = node.address().to_string();
    assert!(cluster.runtime.block_on(node.stop()));
    wait_until("the loss is seen", || unavailable(&backend).len() == 1);
    let batch = batch(0, 3);
    let pending = backend.begin(Arc::clone(&batch)).expect("begun");
    cluster.add(&[strips[1], strips[2]], &address, &settings());
    let mut out = vec![0.0; batch.tokens * SHAPE.hidden];
    pending.finish(&|| false, &mut out).expect("rows");
    assert_eq!(bits(&out), bits(&alone(&batch)));
}
