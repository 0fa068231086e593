//! Known calls: a node that computes wrong numbers is not used.

use std::sync::atomic::Ordering;

use super::*;

fn options(cluster: &Cluster, reference: bool) -> ClusterOptions {
    ClusterOptions {
        known_calls: true,
        reference: reference.then(|| Arc::<FallbackScript>::default() as _),
        startup_timeout: Duration::from_secs(2),
        ..cluster.options()
    }
}

#[test]
fn a_node_whose_numbers_differ_from_the_own_file_is_refused_by_name_until_they_are_right() {
    let cluster = Cluster::whole(2);
    cluster.node_knobs[0].wrong.store(true, Ordering::SeqCst);
    let backend = cluster.connect_with(&options(&cluster, true));
    let backend = backend.expect("the other node holds everything");
    let [(name, reason)] = &unavailable(&backend)[..] else {
        panic!("{:?}", unavailable(&backend));
    };
    assert_eq!(*name, cluster.addresses()[0]);
    assert!(
        reason.contains("computes wrong numbers") && reason.contains("the coordinator's own file"),
        "{reason}"
    );
    for i in 0..8 {
        check(&backend, &batch(i % SHAPE.layers, 2));
    }
    cluster.node_knobs[0].wrong.store(false, Ordering::SeqCst);
    wait_until("its slice was replaced", || {
        unavailable(&backend).is_empty()
    });
    check(&backend, &batch(0, 2));
}

#[test]
fn without_an_own_file_nodes_are_compared_with_each_other() {
    let cluster = Cluster::whole(1);
    let mut options = options(&cluster, false);
    let first = cluster
        .connect_with(&options)
        .expect("nothing to compare with");
    check(&first, &batch(1, 1));
    drop(first);
    let mut cluster = cluster;
    cluster.add(&[GRID.whole()], "127.0.0.1:0", &settings());
    cluster.node_knobs[1].wrong.store(true, Ordering::SeqCst);
    options.nodes = cluster.addresses();
    let backend = cluster.connect_with(&options).expect("one of both");
    wait_until("one is refused", || unavailable(&backend).len() == 1);
    let (_, reason) = unavailable(&backend).remove(0);
    assert!(reason.contains("computes wrong numbers"), "{reason}");
    let named = cluster
        .addresses()
        .iter()
        .filter(|a| reason.contains(*a))
        .count();
    assert_eq!(named, 2, "both are named: {reason}");
}

#[test]
fn the_only_node_with_wrong_numbers_ends_the_start_with_its_name() {
    let cluster = Cluster::whole(1);
    cluster.knobs.wrong.store(true, Ordering::SeqCst);
    let error = cluster.connect_with(&options(&cluster, true));
    let text = error.expect_err("no other").to_string();
    assert!(
        text.contains(&cluster.addresses()[0]) && text.contains("computes wrong numbers"),
        "{text}"
    );
}
