//! Audits, quarantines, and infinity or NaN in rows.

use std::num::NonZeroU32;
use std::sync::atomic::Ordering;

use ds4_proto::pb;
use ds4_proto::wire;

use super::*;
use crate::cluster::health_state::HealthState;

/// Every call is audited.
fn audited(cluster: &Cluster) -> ClusterOptions {
    ClusterOptions {
        audit: NonZeroU32::new(1),
        ..cluster.options()
    }
}

fn health(backend: &ClusterBackend, node: &str) -> HealthState {
    let states = backend.health_states();
    let found = states.iter().find(|(name, _)| **name == *node);
    found.expect("a connected node").1
}

fn work(backend: &ClusterBackend) {
    for i in 0..20 {
        check(backend, &batch(i % SHAPE.layers, 1 + i % 5));
    }
}

#[test]
fn a_wrong_bit_of_one_of_three_nodes_reaches_nobody_and_names_the_node() {
    for wrong in 0..3 {
        let cluster = Cluster::whole(3);
        let backend = cluster.connect_with(&audited(&cluster)).expect("cluster");
        work(&backend);
        cluster.node_knobs[wrong]
            .wrong
            .store(true, Ordering::SeqCst);
        work(&backend);
        let addresses = cluster.addresses();
        for (i, address) in addresses.iter().enumerate() {
            let quarantined = health(&backend, address) == HealthState::Quarantined;
            assert_eq!(quarantined, i == wrong, "node {i} of {wrong}");
        }
    }
}

#[test]
fn a_node_in_quarantine_is_asked_nothing() {
    let cluster = Cluster::whole(3);
    let backend = cluster.connect_with(&audited(&cluster)).expect("cluster");
    cluster.node_knobs[1].wrong.store(true, Ordering::SeqCst);
    work(&backend);
    let before = cluster.nodes[1].counters().calls;
    work(&backend);
    assert_eq!(cluster.nodes[1].counters().calls, before);
}

#[test]
fn the_own_file_decides_between_a_node_and_itself() {
    let cluster = Cluster::whole(1);
    let (backend, fallback) = cluster.connect_with_fallback(&audited(&cluster));
    work(&backend);
    let audits = fallback.computed.load(Ordering::SeqCst);
    assert!(audits >= 20, "the own file is the second opinion: {audits}");
    cluster.knobs.wrong.store(true, Ordering::SeqCst);
    work(&backend);
    let address = &cluster.addresses()[0];
    assert_eq!(health(&backend, address), HealthState::Quarantined);
}

#[test]
fn two_that_contradict_each_other_without_a_third_give_an_error_that_names_both() {
    let cluster = Cluster::whole(2);
    let backend = cluster.connect_with(&audited(&cluster)).expect("cluster");
    cluster.node_knobs[1].wrong.store(true, Ordering::SeqCst);
    let error = compute(&backend, &batch(2, 3)).expect_err("nobody can decide");
    assert!(
        matches!(error, ExpertError::Contradiction { layer: 2, .. }),
        "{error}"
    );
    for address in cluster.addresses() {
        assert!(error.to_string().contains(&address), "{error}");
    }
}

#[test]
fn an_audit_without_a_second_place_costs_nothing() {
    let cluster = Cluster::whole(1);
    let backend = cluster.connect_with(&audited(&cluster)).expect("cluster");
    work(&backend);
    assert_eq!(cluster.nodes[0].counters().calls, 20);
}

#[test]
fn infinity_and_nan_are_blamed_on_the_node_and_computed_elsewhere() {
    let cluster = Cluster::whole(2);
    let backend = cluster.connect_with(&cluster.options()).expect("cluster");
    cluster.node_knobs[0]
        .not_finite
        .store(true, Ordering::SeqCst);
    work(&backend);
    let addresses = cluster.addresses();
    assert_eq!(health(&backend, &addresses[0]), HealthState::Quarantined);
    assert_eq!(health(&backend, &addresses[1]), HealthState::Healthy);
}

#[test]
fn infinity_and_nan_from_every_node_are_an_error_that_blames_none_alone() {
    let cluster = Cluster::whole(2);
    let backend = cluster.connect_with(&cluster.options()).expect("cluster");
    cluster.knobs.not_finite.store(true, Ordering::SeqCst);
    let error = compute(&backend, &batch(1, 2)).expect_err("no numbers");
    assert!(
        matches!(error, ExpertError::NotFinite { layer: 1, .. }),
        "{error}"
    );
    for address in cluster.addresses() {
        assert_ne!(health(&backend, &address), HealthState::Quarantined);
    }
}

#[test]
fn activations_that_are_not_finite_are_never_sent() {
    let cluster = Cluster::whole(1);
    let backend = cluster.connect_with(&cluster.options()).expect("cluster");
    let mut fields = ds4_common::expert::BatchFields::clone(&batch(3, 1));
    fields.routes[0].weight = f32::NAN;
    let nan = ExpertBatch::new(SHAPE, fields).expect("a legal batch");
    let error = compute(&backend, &Arc::new(nan)).expect_err("NaN");
    assert!(
        matches!(error, ExpertError::InputNotFinite { layer: 3 }),
        "{error}"
    );
    assert_eq!(cluster.nodes[0].counters().calls, 0);
}

#[test]
fn rows_of_another_call_do_not_pass() {
    use super::foreign::{Impostor, beside_an_honest_node};
    // The rows of the first call, with the right id, for every later one.
    static FIRST: std::sync::Mutex<Option<pb::Work>> = std::sync::Mutex::new(None);
    let answer: fn(pb::Work) -> pb::compute_reply::Kind = |work| {
        let mut first = FIRST.lock().expect("kept");
        let kept = first.get_or_insert_with(|| work.clone());
        let values = vec![0.5; work.tokens as usize * SHAPE.hidden];
        let checksum = wire::rows_checksum(&values, kept.checksum ^ 1);
        pb::compute_reply::Kind::Rows(wire::rows_message(work.id, &values, checksum, 0, 0))
    };
    let _: Impostor = Impostor::new(answer);
    let (_cluster, backend, fallback) = beside_an_honest_node(answer);
    work(&backend);
    assert_eq!(fallback.computed.load(Ordering::SeqCst), 0);
}
