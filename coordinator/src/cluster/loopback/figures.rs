//! Times for docs/BENCHMARKS.md, measured on this machine. Not a test of any bound.
//!
//! `cargo test --release -p ds4-coordinator --lib figures -- --ignored --nocapture --test-threads
//! 1`

use std::io::{Read, Write};
use std::net::{TcpListener as StdListener, TcpStream};
use std::sync::atomic::Ordering;

use ds4_common::expert::{BatchError, BatchFields, ExpertInput, Route};
use ds4_common::quant::BlockQ8K;
use ds4_expert_node::compute::Compute;

use super::relay::Relay;
use super::*;
use crate::cluster::scripted::FINGERPRINT;

/// Widths of DeepSeek V4 Flash.
const FLASH: MoeShape = MoeShape {
    layers: 1,
    hidden: 4096,
    experts_used: 6,
    grid: Grid {
        experts: 256,
        blocks: 8,
    },
};

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    let (p50, p90, max) = (at(50), at(90), at(100));
    println!(
        "{what}: median {p50:?}, p90 {p90:?}, max {max:?} of {}",
        times.len()
    );
}

fn warm(backend: &ClusterBackend) {
    for i in 0..60 {
        check(backend, &batch(i % SHAPE.layers, 2));
    }
}

#[test]
#[ignore = "prints figures"]
fn failover_after_a_kill() {
    let times = (0..30).map(|_| {
        let cluster = Cluster::whole(2);
        let relay = Relay::start(&cluster.runtime, cluster.addresses()[0].clone());
        let options = ClusterOptions {
            nodes: vec![relay.address.clone(), cluster.addresses()[1].clone()],
            ..quick()
        };
        let backend = cluster.connect_with(&options).expect("cluster");
        warm(&backend);
        cluster.node_knobs[0]
            .delay_ms
            .store(60_000, Ordering::SeqCst);
        let begun = cluster.node_knobs[0].begun.load(Ordering::SeqCst);
        let batch = batch(0, 2);
        let pending = backend.begin(Arc::clone(&batch)).expect("begun");
        wait_until("it computes", || {
            cluster.node_knobs[0].begun.load(Ordering::SeqCst) > begun
        });
        let start = Instant::now();
        relay.kill();
        let mut out = vec![0.0; batch.tokens * SHAPE.hidden];
        pending.finish(&|| false, &mut out).expect("rows");
        let took = start.elapsed();
        cluster.node_knobs[0].delay_ms.store(0, Ordering::SeqCst);
        took
    });
    show(
        "layer call in which a node dies, from its death on",
        times.collect(),
    );
}

#[test]
#[ignore = "prints figures"]
fn failover_after_a_silent_cut() {
    let times = (0..20).map(|_| {
        let cluster = Cluster::whole(2);
        let relay = Relay::start(&cluster.runtime, cluster.addresses()[0].clone());
        let options = ClusterOptions {
            nodes: vec![relay.address.clone(), cluster.addresses()[1].clone()],
            ..quick()
        };
        let backend = cluster.connect_with(&options).expect("cluster");
        warm(&backend);
        relay.cut(true);
        let start = Instant::now();
        check(&backend, &batch(1, 2));
        start.elapsed()
    });
    show("first layer call after a silent cut", times.collect());
}

/// Answers at once with rows of zeros.
struct Zeros;

impl Compute for Zeros {
    fn compute(
        &mut self,
        batch: &ExpertBatch,
        rects: &[TileRect],
        out: &mut Vec<f32>,
    ) -> Result<u64, BatchError> {
        out.clear();
        out.resize(batch.reply_rows(0..batch.tokens, rects) * FLASH.hidden, 0.0);
        Ok(0)
    }
}

fn flash_batch() -> Arc<ExpertBatch> {
    let route = |slot: usize| Route {
        expert: slot as u32 * 41,
        weight: 0.5,
    };
    let fields = BatchFields {
        layer: 0,
        tokens: 1,
        routes: (0..FLASH.experts_used).map(route).collect(),
        input: ExpertInput::Q8K(vec![BlockQ8K::ZERO; FLASH.hidden / 256]),
        round: true,
    };
    Arc::new(ExpertBatch::new(FLASH, fields).expect("a legal batch"))
}

/// The bytes of one call there and back over a bare connection.
fn ping_pong(request: usize, reply: usize, rounds: usize) -> Vec<Duration> {
    let listener = StdListener::bind("127.0.0.1:0").expect("listener");
    let address = listener.local_addr().expect("address");
    let echo = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().expect("accepted");
        peer.set_nodelay(true).expect("no delay");
        let (mut question, answer) = (vec![0; request], vec![0; reply]);
        while peer.read_exact(&mut question).is_ok() {
            peer.write_all(&answer).expect("answered");
        }
    });
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_nodelay(true).expect("no delay");
    let (question, mut answer) = (vec![0; request], vec![0; reply]);
    let times = (0..rounds).map(|_| {
        let start = Instant::now();
        stream.write_all(&question).expect("asked");
        stream.read_exact(&mut answer).expect("answered");
        start.elapsed()
    });
    let times = times.collect();
    drop(stream);
    echo.join().expect("echo");
    times
}

#[test]
#[ignore = "prints figures"]
fn a_call_against_a_ping_pong_of_the_same_bytes() {
    let runtime = Runtime::new().expect("runtime");
    let identity = Identity {
        model: "zeros".to_owned(),
        fingerprint: FINGERPRINT,
        shape: FLASH,
        held: Holdings::uniform(FLASH.grid, 1, TileSet::whole(FLASH.grid)),
        kernels: "none".to_owned(),
        weight_bytes: 0,
        resident_bytes: 0,
    };
    let node = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        RunningNode::start(Box::new(Zeros), identity, &settings(), listener).await
    });
    let node = node.expect("node");
    let options = ClusterOptions {
        nodes: vec![node.address().to_string()],
        ..quick()
    };
    let expected = Expectation {
        fingerprint: FINGERPRINT,
        shape: FLASH,
    };
    let backend = runtime.block_on(ClusterBackend::connect(&options, &expected, None));
    let backend = backend.expect("cluster");
    let batch = flash_batch();
    let mut out = vec![0.0; FLASH.hidden];
    let mut rounds = |count: usize| -> Vec<Duration> {
        let round = |_| {
            let start = Instant::now();
            let pending = backend.begin(Arc::clone(&batch)).expect("begun");
            pending.finish(&|| false, &mut out).expect("rows");
            start.elapsed()
        };
        (0..count).map(round).collect()
    };
    rounds(500);
    let before = node.counters();
    let calls = rounds(3000);
    let after = node.counters();
    let bytes = |a: u64, b: u64| ((a - b) / 3000) as usize;
    let (request, reply) = (
        bytes(after.bytes_in, before.bytes_in),
        bytes(after.bytes_out, before.bytes_out),
    );
    show(
        &format!("call of {request} B, answered with {reply} B"),
        calls,
    );
    show(
        "ping-pong of the same bytes",
        ping_pong(request, reply, 3500)[500..].to_vec(),
    );
}
