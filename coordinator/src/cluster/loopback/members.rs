//! Nodes that join, leave, drain and come back changed; two coordinators at the same nodes.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use ds4_proto::security::Security;
use futures::future::BoxFuture;

use super::relay::Relay;
use super::*;
use crate::cluster::Resolver;
use crate::cluster::node_metrics;

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
    assert_eq!(unavailable(&backend).len(), 1);
    check(&backend, &batch(0, 2));
    cluster.add(&[GRID.whole()], &late, &settings());
    work_until("it has work", &backend, || {
        cluster.node_knobs[1].begun.load(Ordering::SeqCst) > 0
    });
    assert!(unavailable(&backend).is_empty());
}

#[test]
fn a_draining_node_loses_its_work_to_others_without_an_error() {
    let mut cluster = Cluster::whole(2);
    let backend = cluster.connect(None).expect("cluster");
    let node = cluster.nodes.remove(0);
    std::thread::scope(|scope| {
        let stopped = scope.spawn(|| cluster.runtime.block_on(node.stop()));
        work_until("it has left", &backend, || unavailable(&backend).len() == 1);
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
    wait_until("the loss is seen", || unavailable(&backend).len() == 1);
    cluster.add(&[strips[1], strips[2]], &address, &settings());
    work_until("it has work", &backend, || {
        cluster.node_knobs[2].begun.load(Ordering::SeqCst) > 0
    });
    let nodes = backend.table().nodes();
    let held = nodes[1].held.as_ref().expect("it is up");
    assert_eq!(held.rects(0), [strips[1], strips[2]]);
}

#[test]
fn a_node_of_another_model_at_a_known_address_is_refused_and_ignored() {
    let mut cluster = Cluster::whole(2);
    let backend = cluster.connect(None).expect("cluster");
    let node = cluster.nodes.remove(1);
    let address = node.address().to_string();
    assert!(cluster.runtime.block_on(node.stop()));
    wait_until("the loss is seen", || unavailable(&backend).len() == 1);
    cluster.add_model([6; 32], &address);
    work_until("it is refused", &backend, || {
        matches!(backend.table().nodes()[1].state, NodeState::Refused(_))
    });
    check(&backend, &batch(1, 3));
    let (_, why) = unavailable(&backend).remove(0);
    assert!(why.contains(&"06".repeat(32)), "{why}");
    assert_eq!(cluster.node_knobs[2].begun.load(Ordering::SeqCst), 0);
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
    assert_eq!(*backend.table().nodes()[0].name, cluster.addresses()[0]);
    let nowhere = ClusterOptions {
        nodes: vec!["dns:no-such-host.invalid:1".to_owned()],
        startup_timeout: Duration::from_millis(300),
        security: Security::Insecure,
        ..quick()
    };
    let error = cluster
        .connect_with(&nowhere)
        .expect_err("no node is there");
    assert!(matches!(error, ClusterError::Uncovered { .. }), "{error}");
}

/// A name server with records that the test sets.
#[derive(Debug, Default)]
struct Records(Mutex<Vec<SocketAddr>>);

impl Records {
    fn set(&self, addresses: &[String]) {
        let parse = |text: &String| text.parse().expect("an address");
        *self.0.lock().expect("lock") = addresses.iter().map(parse).collect();
    }
}

impl Resolver for Records {
    fn lookup<'a>(&'a self, _: &'a str) -> BoxFuture<'a, std::io::Result<Vec<SocketAddr>>> {
        let addresses = self.0.lock().expect("lock").clone();
        Box::pin(async move { Ok(addresses) })
    }
}

#[test]
fn nodes_come_and_go_with_the_records_of_their_name() {
    let mut cluster = Cluster::whole(3);
    let addresses = cluster.addresses();
    let records = Arc::<Records>::default();
    records.set(&addresses[..1]);
    let options = ClusterOptions {
        nodes: vec!["dns:experts:7".to_owned()],
        resolver: Arc::clone(&records) as _,
        resolve_interval: Duration::from_millis(5),
        // A name may resolve to another machine.
        security: Security::Insecure,
        ..quick()
    };
    let backend = cluster.connect_with(&options).expect("cluster");
    let begun = |node: usize| cluster.node_knobs[node].begun.load(Ordering::SeqCst);
    check(&backend, &batch(0, 2));
    records.set(&addresses[..2]);
    work_until("the second has work", &backend, || begun(1) > 0);
    // One that is no longer named stays until it stops: its records go before its process does.
    records.set(&addresses[1..]);
    work_until("the third has work", &backend, || begun(2) > 0);
    assert_eq!(backend.table().nodes().len(), 3);
    let node = cluster.nodes.remove(0);
    std::thread::scope(|scope| {
        scope.spawn(|| cluster.runtime.block_on(node.stop()));
        work_until("the first has left", &backend, || {
            backend.table().nodes().len() == 2
        });
    });
    assert!(
        unavailable(&backend).is_empty(),
        "a node that has left is not missed"
    );
    let names: Vec<String> = backend
        .table()
        .nodes()
        .iter()
        .map(|n| n.name.to_string())
        .collect();
    assert_eq!(names.len(), 2);
    assert!(addresses[1..].iter().all(|address| names.contains(address)));
    // Nor do its series stay.
    let mut metrics = String::new();
    node_metrics::render(&mut metrics);
    assert!(!metrics.contains(&addresses[0]), "{metrics}");
    assert!(
        addresses[1..]
            .iter()
            .all(|address| metrics.contains(address))
    );
}

/// The states in the order of the addresses.
fn states(backend: &ClusterBackend) -> Vec<NodeState> {
    let nodes = backend.table().nodes();
    nodes.into_iter().map(|node| node.state).collect()
}

#[test]
fn a_node_with_two_addresses_is_one_member_and_its_second_address_a_spare() {
    let cluster = Cluster::whole(2);
    let spare = Relay::start(&cluster.runtime, cluster.addresses()[0].clone());
    let first = Relay::start(&cluster.runtime, cluster.addresses()[0].clone());
    let options = ClusterOptions {
        nodes: vec![
            first.address.clone(),
            spare.address.clone(),
            cluster.addresses()[1].clone(),
        ],
        ..quick()
    };
    let backend = cluster.connect_with(&options).expect("cluster");
    let is_alias = |state: &NodeState| matches!(state, NodeState::Alias(_));
    wait_until("one address is a spare", || {
        states(&backend).iter().filter(|s| is_alias(s)).count() == 1
            && states(&backend).iter().filter(|s| !s.is_missing()).count() == 3
    });
    // Two replicas of everything, not three, of which one node would have two thirds.
    let begun = |node: usize| cluster.node_knobs[node].begun.load(Ordering::SeqCst);
    // The dispatcher looks at the nodes at a call.
    check(&backend, &batch(0, 2));
    assert_eq!(backend.health_states().len(), 2);
    let before = [begun(0), begun(1)];
    for i in 0..30 {
        check(&backend, &batch(i % SHAPE.layers, 2));
    }
    let [one, other] = [begun(0) - before[0], begun(1) - before[1]];
    assert!(
        one * 5 <= other * 8 && other * 5 <= one * 8,
        "{one} and {other}"
    );
    // Which of the two was first is chance.
    let kept = if is_alias(&states(&backend)[0]) {
        &spare
    } else {
        &first
    };
    let kept_address = kept.address.clone();
    kept.kill();
    work_until("the spare has taken over", &backend, || {
        let nodes = backend.table().nodes();
        let up = nodes
            .iter()
            .filter(|node| matches!(node.state, NodeState::Up))
            .map(|node| node.name.to_string());
        let up: Vec<String> = up.collect();
        up.len() == 2 && !up.contains(&kept_address)
    });
    check(&backend, &batch(0, 2));
    assert_eq!(backend.health_states().len(), 2);
}

#[test]
fn what_no_node_holds_at_the_start_is_left_to_the_local_fallback() {
    let strips = GRID.cut(1, 3).expect("cut");
    let cluster = Cluster::with_nodes(&[vec![strips[0]], vec![strips[2]]]);
    let (backend, fallback) = cluster.connect_with_fallback(&cluster.options());
    check(&backend, &batch(0, 7));
    assert_eq!(
        fallback.computed.load(Ordering::SeqCst),
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
