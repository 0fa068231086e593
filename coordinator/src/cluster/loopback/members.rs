//! Nodes that join, leave, drain and come back changed; two coordinators at the same nodes.

use std::sync::atomic::Ordering;

use super::*;
use crate::cluster::NodeState;

fn free_address() -> String {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    free.local_addr().expect("address").to_string()
}

#[test]
fn a_node_that_is_missing_at_the_start_joins_later() {
    let mut cluster = Cluster::whole(1);
    let late = free_address();
    let options = ClusterOptions {
        nodes: vec![cluster.addresses()[0].clone(), late.clone()],
        ..quick()
    };
    let backend = cluster.connect_with(&options).expect("one is enough");
    assert_eq!(backend.faults().len(), 1);
    check(&backend, &batch(0, 2));
    cluster.add(&[GRID.whole()], &late, &settings());
    work_until("it has work", &backend, || {
        cluster.own[1].begun.load(Ordering::SeqCst) > 0
    });
    assert!(backend.faults().is_empty());
}

#[test]
fn a_draining_node_loses_its_work_to_others_without_an_error() {
    let mut cluster = Cluster::whole(2);
    let backend = cluster.connect(None).expect("cluster");
    let node = cluster.nodes.remove(0);
    std::thread::scope(|scope| {
        let stopped = scope.spawn(|| cluster.runtime.block_on(node.stop()));
        work_until("it has left", &backend, || backend.faults().len() == 1);
        assert!(stopped.join().expect("stop"), "everything was finished");
    });
    check(&backend, &batch(0, 2));
}

#[test]
fn a_node_that_returns_with_other_tiles_is_used_for_those() {
    let strips = GRID.cut(1, 3).expect("cut");
    let mut cluster = Cluster::with_nodes(&[vec![GRID.whole()], vec![strips[0]]]);
    let backend = cluster.connect(None).expect("cluster");
    check(&backend, &batch(0, 2));
    let node = cluster.nodes.remove(1);
    let address = node.address().to_string();
    assert!(cluster.runtime.block_on(node.stop()));
    wait_until("the loss is seen", || backend.faults().len() == 1);
    cluster.add(&[strips[1], strips[2]], &address, &settings());
    work_until("it has work", &backend, || {
        cluster.own[2].begun.load(Ordering::SeqCst) > 0
    });
    let nodes = backend.nodes();
    let held = nodes[1].held.as_ref().expect("it is up");
    assert_eq!(held.rects(0), [strips[1], strips[2]]);
}

#[test]
fn a_stranger_that_takes_a_nodes_place_is_refused_and_ignored() {
    let mut cluster = Cluster::whole(2);
    let backend = cluster.connect(None).expect("cluster");
    let node = cluster.nodes.remove(1);
    let address = node.address().to_string();
    assert!(cluster.runtime.block_on(node.stop()));
    wait_until("the loss is seen", || backend.faults().len() == 1);
    cluster.add_model([6; 32], &address);
    work_until("it is refused", &backend, || {
        matches!(backend.nodes()[1].state, NodeState::Refused(_))
    });
    check(&backend, &batch(1, 3));
    let (_, why) = backend.faults().remove(0);
    assert!(why.contains(&"06".repeat(32)), "{why}");
    assert_eq!(cluster.own[2].begun.load(Ordering::SeqCst), 0);
}

#[test]
fn a_name_stands_for_its_addresses() {
    let cluster = Cluster::whole(1);
    let options = ClusterOptions {
        nodes: vec![format!("dns:{}", cluster.addresses()[0])],
        ..quick()
    };
    let backend = cluster.connect_with(&options).expect("cluster");
    check(&backend, &batch(0, 2));
    assert_eq!(*backend.nodes()[0].name, cluster.addresses()[0]);
    let nowhere = ClusterOptions {
        nodes: vec!["dns:no-such-host.invalid:1".to_owned()],
        patience: Duration::from_millis(300),
        ..quick()
    };
    let error = cluster.connect_with(&nowhere).expect_err("nobody is there");
    assert!(matches!(error, ClusterError::Uncovered { .. }), "{error}");
}

#[test]
fn what_no_node_holds_at_the_start_is_left_to_the_own_file() {
    let strips = GRID.cut(1, 3).expect("cut");
    let cluster = Cluster::with_nodes(&[vec![strips[0]], vec![strips[2]]]);
    let (backend, own) = cluster.connect_with_own(&cluster.options());
    check(&backend, &batch(0, 7));
    assert_eq!(
        own.computed.load(Ordering::SeqCst),
        1,
        "one block is missing"
    );
}

#[test]
fn two_coordinators_share_the_nodes() {
    let mut cluster = Cluster::whole(3);
    let backends = [(); 2].map(|()| cluster.connect(None).expect("cluster"));
    let node = cluster.nodes.remove(1);
    std::thread::scope(|scope| {
        let workers = backends.each_ref().map(|backend| {
            scope.spawn(move || {
                for i in 0..150 {
                    check(backend, &batch(i % SHAPE.layers, 1 + i % 9));
                }
            })
        });
        std::thread::sleep(Duration::from_millis(20));
        cluster.runtime.block_on(node.stop());
        for worker in workers {
            worker.join().expect("all batches are right");
        }
    });
}
