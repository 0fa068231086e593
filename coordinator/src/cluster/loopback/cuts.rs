//! The same bits for any number of nodes and any cut.

use ds4_common::expert::BatchFields;
use ds4_proto::channel;
use ds4_proto::pb::node_control_client::NodeControlClient;
use ds4_proto::wire::{Versions, decode_node};

use super::*;

#[test]
fn every_cut_and_node_count_gives_the_bits_of_one_holder() {
    for nodes in 1..=4 {
        let cluster = Cluster::whole(nodes);
        for grid in [None, Some((1, 3)), Some((2, 1)), Some((4, 2)), Some((6, 3))] {
            let backend = cluster.connect(grid).expect("cluster");
            for tokens in [1, 5, 33] {
                let batch = batch(nodes % SHAPE.layers, tokens);
                let found = compute(&backend, &batch).expect("rows");
                assert_eq!(
                    bits(&found),
                    bits(&alone(&batch)),
                    "{nodes} nodes, {grid:?}"
                );
            }
        }
    }
}

#[test]
fn nodes_with_ragged_tiles_give_the_same_bits() {
    let rect = |experts: std::ops::Range<u32>, blocks: std::ops::Range<u32>| TileRect {
        experts: ds4_common::tiles::Span::new(experts.start, experts.end),
        blocks: ds4_common::tiles::Span::new(blocks.start, blocks.end),
    };
    let cluster = Cluster::with_nodes(&[
        vec![rect(0..5, 0..2)],
        vec![rect(3..6, 0..3)],
        vec![rect(0..3, 1..3), rect(5..6, 0..1)],
    ]);
    let backend = cluster.connect(None).expect("cluster");
    let batch = batch(2, 17);
    let found = compute(&backend, &batch).expect("rows");
    assert_eq!(bits(&found), bits(&alone(&batch)));
}

#[test]
fn nodes_that_hold_other_tiles_in_every_layer_give_the_same_bits() {
    let strips = GRID.cut(1, 3).expect("cut");
    let (low, high) = (vec![strips[0]], vec![strips[1], strips[2]]);
    let nothing = Vec::new;
    let mut cluster = Cluster::new();
    for layers in [
        [vec![GRID.whole()], low.clone(), nothing(), nothing()],
        [nothing(), high.clone(), low, vec![GRID.whole()]],
        [nothing(), nothing(), high, nothing()],
    ] {
        let held = Holdings::new(GRID, layers.to_vec()).expect("holdings");
        cluster.add_holding(held, "127.0.0.1:0", &settings());
    }
    let backend = cluster.connect(None).expect("cluster");
    for layer in 0..SHAPE.layers {
        let batch = batch(layer, 9);
        let found = compute(&backend, &batch).expect("rows");
        assert_eq!(bits(&found), bits(&alone(&batch)), "layer {layer}");
    }
    let calls: Vec<u64> = cluster.nodes.iter().map(|n| n.counters().calls).collect();
    assert_eq!(calls, [2, 3, 1]);
}

#[test]
fn nodes_count_all_work_and_share_it() {
    let cluster = Cluster::whole(3);
    let backend = cluster.connect(None).expect("cluster");
    let batch = batch(0, 10);
    compute(&backend, &batch).expect("rows");
    // A node counts bytes when it sends them, which a busy machine may do after the layer is whole.
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut counters: Vec<_> = cluster.nodes.iter().map(RunningNode::counters).collect();
    while counters.iter().any(|c| c.bytes_out == 0) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
        counters = cluster.nodes.iter().map(RunningNode::counters).collect();
    }
    for c in counters {
        let work = 10 * SHAPE.experts_used as u64;
        assert_eq!((c.calls, c.expert_blocks), (1, work), "{c:?}");
        assert_eq!(c.bytes_out, 10 * 8 * 4, "{c:?}");
        assert!(c.bytes_in > 0, "{c:?}");
    }
    let described = cluster.runtime.block_on(async {
        let endpoint = channel::endpoint(&cluster.addresses()[0]).expect("an address");
        let channel = endpoint.connect().await.expect("a connection");
        let mut client = NodeControlClient::new(channel);
        let reply = client.describe(Versions::request()).await;
        decode_node(reply.expect("a reply").get_ref())
    });
    let described = described.expect("well-formed").expect("the same version");
    assert_eq!(described.counters.expert_blocks, 30);
}

#[test]
fn large_batches_travel_as_several_calls() {
    let cluster = Cluster::whole(2);
    let backend = cluster.connect(Some((2, 3))).expect("cluster");
    let batch = batch(1, ds4_proto::limits::MAX_TOKENS + 100);
    let found = compute(&backend, &batch).expect("rows");
    assert_eq!(bits(&found), bits(&alone(&batch)));
    assert!(cluster.nodes.iter().all(|n| n.counters().calls == 2));
}

#[test]
fn batches_in_flight_together_do_not_mix() {
    let cluster = Cluster::whole(2);
    let backend = cluster.connect(None).expect("cluster");
    let batches: Vec<_> = (0..24)
        .map(|i| batch(i % SHAPE.layers, 1 + i % 7))
        .collect();
    let pending: Vec<_> = batches
        .iter()
        .map(|batch| backend.begin(Arc::clone(batch)).expect("begun"))
        .collect();
    for (batch, pending) in batches.iter().zip(pending) {
        let mut out = vec![0.0; batch.tokens * SHAPE.hidden];
        pending.finish(&|| false, &mut out).expect("rows");
        assert_eq!(bits(&out), bits(&alone(batch)));
    }
}

#[test]
fn a_batch_that_does_not_fit_the_model_never_travels() {
    let cluster = Cluster::whole(1);
    let backend = cluster.connect(None).expect("cluster");
    let larger = MoeShape {
        layers: SHAPE.layers + 1,
        ..SHAPE
    };
    let fields = BatchFields {
        layer: SHAPE.layers,
        ..BatchFields::clone(&batch(0, 1))
    };
    let foreign = Arc::new(ExpertBatch::new(larger, fields).expect("legal in its own model"));
    let error = compute(&backend, &foreign).expect_err("no such layer");
    assert!(matches!(error, ExpertError::Batch(_)), "{error}");
    assert_eq!(cluster.nodes[0].counters().bytes_in, 0);
}
