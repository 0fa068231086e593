//! Nodes that are slow, busy, missing, draining, or gone for a while.

use std::sync::atomic::Ordering;

use super::*;

#[test]
fn a_late_answer_is_an_error_that_names_node_and_layer() {
    let cluster = Cluster::whole(1);
    let options = ClusterOptions {
        nodes: cluster.addresses(),
        deadline: Duration::from_millis(100),
        ..quick()
    };
    let backend = cluster.connect_with(&options).expect("cluster");
    cluster.knobs.delay_ms.store(400, Ordering::SeqCst);
    let error = compute(&backend, &batch(3, 1)).expect_err("late");
    assert!(
        matches!(
            error,
            ExpertError::Deadline {
                layer: 3,
                deadline_ms: 100,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains(&cluster.addresses()[0]));
    cluster.knobs.delay_ms.store(0, Ordering::SeqCst);
    wait_until("the late call ends", || {
        cluster.nodes[0].counters().calls == 1
    });
    compute(&backend, &batch(3, 1)).expect("the next call");
}

#[test]
fn work_that_is_no_longer_wanted_is_not_computed() {
    let cluster = Cluster::whole(1);
    let backend = cluster.connect(None).expect("cluster");
    cluster.knobs.delay_ms.store(200, Ordering::SeqCst);
    let first = backend.begin(batch(0, 1)).expect("begun");
    wait_until("the first call computes", || {
        cluster.knobs.begun.load(Ordering::SeqCst) == 1
    });
    let second = backend.begin(batch(1, 1)).expect("begun");
    wait_until("the second call arrives", || {
        cluster.nodes[0].counters().bytes_in >= 2 * (3 * 8 + 32)
    });
    drop(second);
    let mut out = vec![0.0; 8];
    first.finish(&|| false, &mut out).expect("rows");
    wait_until("the second is dropped", || {
        cluster.nodes[0].counters().dropped == 1
    });
    assert_eq!(cluster.nodes[0].counters().calls, 1);
}

#[test]
fn a_busy_node_is_called_again() {
    let mut cluster = Cluster::new();
    let tight = NodeSettings {
        queue: 1,
        in_flight: 64,
        ..settings()
    };
    cluster.add(&[GRID.whole()], "127.0.0.1:0", &tight);
    let backend = cluster.connect(None).expect("cluster");
    cluster.knobs.delay_ms.store(3, Ordering::SeqCst);
    let batches: Vec<_> = (0..12).map(|i| batch(i % SHAPE.layers, 2)).collect();
    let pending: Vec<_> = batches
        .iter()
        .map(|batch| backend.begin(Arc::clone(batch)).expect("begun"))
        .collect();
    for (batch, pending) in batches.iter().zip(pending) {
        let mut out = vec![0.0; batch.tokens * SHAPE.hidden];
        pending.finish(&|| false, &mut out).expect("rows");
        assert_eq!(bits(&out), bits(&alone(batch)));
    }
    assert!(
        cluster.nodes[0].counters().refused > 0,
        "the node was never busy"
    );
}

#[test]
fn a_node_that_is_not_there_is_named() {
    let cluster = Cluster::with_nodes(&[GRID.cut(1, 3).expect("cut")[..2].to_vec()]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let gone = free.local_addr().expect("address").to_string();
    drop(free);
    let options = ClusterOptions {
        nodes: vec![cluster.addresses()[0].clone(), gone.clone()],
        startup_timeout: Duration::from_millis(600),
        ..quick()
    };
    let error = cluster.connect_with(&options).expect_err("unreachable");
    let text = error.to_string();
    assert!(matches!(error, ClusterError::Unreachable { .. }), "{text}");
    assert!(text.contains(&gone) && text.contains("refused"), "{text}");
}

#[test]
fn a_node_that_comes_late_is_waited_for() {
    let mut cluster = Cluster::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = free.local_addr().expect("address").to_string();
    drop(free);
    let options = ClusterOptions {
        nodes: vec![address.clone()],
        ..quick()
    };
    let connecting = cluster
        .runtime
        .spawn(async move { ClusterBackend::connect(&options, &expectation(), None).await });
    std::thread::sleep(Duration::from_millis(400));
    cluster.add(&[GRID.whole()], &address, &settings());
    let backend = cluster
        .runtime
        .block_on(connecting)
        .expect("task")
        .expect("cluster");
    compute(&backend, &batch(0, 1)).expect("rows");
}

#[test]
fn a_restarted_node_is_used_again() {
    let mut cluster = Cluster::whole(2);
    let backend = cluster.connect(None).expect("cluster");
    let batch = batch(0, 4);
    compute(&backend, &batch).expect("before");
    let node = cluster.nodes.remove(0);
    let address = node.address().to_string();
    assert!(
        cluster.runtime.block_on(node.stop()),
        "everything was finished"
    );
    wait_until("the loss is seen", || unavailable(&backend).len() == 1);
    let pending = backend
        .begin(Arc::clone(&batch))
        .expect("begun while it is away");
    cluster.add(&[GRID.whole()], &address, &settings());
    let mut out = vec![0.0; batch.tokens * SHAPE.hidden];
    pending
        .finish(&|| false, &mut out)
        .expect("rows after the restart");
    assert_eq!(bits(&out), bits(&alone(&batch)));
    work_until("it has work", &backend, || {
        cluster.node_knobs[2].begun.load(Ordering::SeqCst) > 0
    });
    assert!(unavailable(&backend).is_empty());
}

#[test]
fn a_node_lost_in_the_middle_of_a_call_is_called_again_when_it_is_back() {
    let mut cluster = Cluster::whole(1);
    let backend = cluster.connect(None).expect("cluster");
    cluster.knobs.delay_ms.store(300, Ordering::SeqCst);
    let batch = batch(1, 2);
    let pending = backend.begin(Arc::clone(&batch)).expect("begun");
    wait_until("the call computes", || {
        cluster.knobs.begun.load(Ordering::SeqCst) == 1
    });
    let hasty = NodeSettings {
        drain_timeout: Duration::ZERO,
        ..settings()
    };
    let node = cluster.nodes.remove(0);
    let address = node.address().to_string();
    // The socket is free only once the server is gone; dropping the handle ends it.
    drop(node);
    cluster.knobs.delay_ms.store(0, Ordering::SeqCst);
    wait_until("the port is free", || {
        std::net::TcpListener::bind(&address).is_ok()
    });
    cluster.add(&[GRID.whole()], &address, &hasty);
    let mut out = vec![0.0; batch.tokens * SHAPE.hidden];
    pending.finish(&|| false, &mut out).expect("rows");
    assert_eq!(bits(&out), bits(&alone(&batch)));
}

#[test]
fn a_node_that_stays_away_is_unreachable_at_the_deadline() {
    let mut cluster = Cluster::whole(1);
    let options = ClusterOptions {
        nodes: cluster.addresses(),
        deadline: Duration::from_millis(300),
        ..quick()
    };
    let backend = cluster.connect_with(&options).expect("cluster");
    let node = cluster.nodes.remove(0);
    cluster.runtime.block_on(node.stop());
    wait_until("the loss is seen", || unavailable(&backend).len() == 1);
    let error = compute(&backend, &batch(0, 1)).expect_err("unreachable");
    assert!(matches!(error, ExpertError::Unreachable { .. }), "{error}");
}

#[test]
fn stopping_finishes_what_is_in_flight() {
    let mut cluster = Cluster::whole(1);
    let backend = cluster.connect(None).expect("cluster");
    cluster.knobs.delay_ms.store(100, Ordering::SeqCst);
    let batches: Vec<_> = (0..4).map(|i| batch(i, 2)).collect();
    let pending: Vec<_> = batches
        .iter()
        .map(|batch| backend.begin(Arc::clone(batch)).expect("begun"))
        .collect();
    wait_until("all calls arrive", || {
        cluster.nodes[0].counters().bytes_in >= 4 * 2 * (3 * 8 + 32)
    });
    let node = cluster.nodes.remove(0);
    assert!(cluster.runtime.block_on(node.stop()), "drained");
    for (batch, pending) in batches.iter().zip(pending) {
        let mut out = vec![0.0; batch.tokens * SHAPE.hidden];
        pending.finish(&|| false, &mut out).expect("rows");
        assert_eq!(bits(&out), bits(&alone(batch)));
    }
}
