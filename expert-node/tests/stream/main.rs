//! The node's side of the wire, spoken to by hand: what it answers, refuses, and survives.

mod http;
mod raw;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ds4_common::expert::{BatchError, BatchFields, ExpertBatch, ExpertInput, MoeShape, Route};
use ds4_common::tiles::{Grid, Holdings, TileRect, TileSet};
use ds4_expert_node::compute::{Compute, Identity};
use ds4_expert_node::node::{COMPUTE_SERVICE, NodeSettings, RunningNode};
use ds4_proto::limits::PROTOCOL_VERSION;
use ds4_proto::pb::compute_reply::Kind as Reply;
use ds4_proto::pb::compute_request::Kind;
use ds4_proto::pb::node_control_client::NodeControlClient;
use ds4_proto::pb::{self, FailureKind};
use ds4_proto::wire::{EncodedBatch, hello};
use ds4_proto::{channel, wire};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const GRID: Grid = Grid {
    experts: 4,
    blocks: 2,
};
const SHAPE: MoeShape = MoeShape {
    layers: 2,
    hidden: 4,
    experts_used: 1,
    grid: GRID,
};
const FINGERPRINT: [u8; 32] = [3; 32];
const WAIT: Duration = Duration::from_secs(10);

/// Answers one row a token, all of the token's first route's weight.
struct Echo {
    delay_ms: Arc<AtomicU64>,
}

impl Compute for Echo {
    fn compute(
        &mut self,
        batch: &ExpertBatch,
        _: &[TileRect],
        out: &mut Vec<f32>,
    ) -> Result<u64, BatchError> {
        std::thread::sleep(Duration::from_millis(self.delay_ms.load(Ordering::SeqCst)));
        out.clear();
        for token in 0..batch.tokens {
            out.extend([batch.routes_of(token)[0].weight; SHAPE.hidden]);
        }
        Ok(1)
    }
}

struct Node {
    running: RunningNode,
    address: String,
    delay_ms: Arc<AtomicU64>,
}

async fn node() -> Node {
    node_with(NodeSettings {
        threads: 1,
        ..NodeSettings::default()
    })
    .await
}

async fn node_with(settings: NodeSettings) -> Node {
    let delay_ms = Arc::new(AtomicU64::new(0));
    let compute = Box::new(Echo {
        delay_ms: Arc::clone(&delay_ms),
    });
    let identity = Identity {
        model: "echo".to_owned(),
        fingerprint: FINGERPRINT,
        shape: SHAPE,
        held: Holdings::uniform(
            GRID,
            SHAPE.layers,
            TileSet::new(GRID, GRID.cut(2, 1).expect("cut")[..1].to_vec()).expect("tiles"),
        ),
        kernels: "none".to_owned(),
        weight_bytes: 11,
        resident_bytes: 11,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
    let running = RunningNode::start(compute, identity, &settings, listener)
        .await
        .expect("node");
    Node {
        address: running.address().to_string(),
        running,
        delay_ms,
    }
}

async fn connect(address: &str) -> tonic::transport::Channel {
    let endpoint = channel::endpoint(address).expect("endpoint");
    endpoint.connect().await.expect("connection")
}

/// A stream after its welcome.
struct Talk {
    to_node: mpsc::Sender<pb::ComputeRequest>,
    from_node: Streaming<pb::ComputeReply>,
}

impl Talk {
    async fn open(address: &str) -> Self {
        let greeting = Kind::Hello(hello(&FINGERPRINT, &SHAPE, PROTOCOL_VERSION));
        let (to_node, mut from_node) = begin(address, greeting).await.expect("stream");
        let first = from_node
            .message()
            .await
            .expect("welcome")
            .expect("welcome");
        assert!(matches!(first.kind, Some(Reply::Welcome(_))), "{first:?}");
        Talk { to_node, from_node }
    }

    async fn send(&self, kind: Kind) {
        self.to_node
            .send(wire::request(kind))
            .await
            .expect("stream is open");
    }

    async fn reply(&mut self) -> Result<Option<Reply>, Status> {
        let message = tokio::time::timeout(WAIT, self.from_node.message()).await;
        Ok(message.expect("a reply in time")?.and_then(|m| m.kind))
    }

    async fn rows(&mut self) -> pb::Rows {
        match self.reply().await.expect("reply") {
            Some(Reply::Rows(rows)) => rows,
            other => panic!("{other:?}"),
        }
    }

    async fn failure(&mut self) -> pb::Failure {
        match self.reply().await.expect("reply") {
            Some(Reply::Failure(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }
}

async fn begin(
    address: &str,
    first: Kind,
) -> Result<
    (
        mpsc::Sender<pb::ComputeRequest>,
        Streaming<pb::ComputeReply>,
    ),
    Status,
> {
    let (to_node, requests) = mpsc::channel(16);
    to_node.try_send(wire::request(first)).expect("room");
    let mut client = channel::compute_client(connect(address).await);
    let reply = client.compute(ReceiverStream::new(requests)).await?;
    Ok((to_node, reply.into_inner()))
}

fn work(id: u64, weight: f32) -> pb::Work {
    let fields = BatchFields {
        layer: 0,
        tokens: 1,
        routes: vec![Route { expert: 0, weight }],
        input: ExpertInput::F32(vec![0.0; SHAPE.hidden]),
        round: true,
    };
    let batch = ExpertBatch::new(SHAPE, fields).expect("a legal batch");
    let held = TileSet::new(GRID, GRID.cut(2, 1).expect("cut")[..1].to_vec()).expect("tiles");
    EncodedBatch::new(&batch, 0..1).work(id, &held, Duration::from_secs(20))
}

fn floats(rows: &pb::Rows) -> Vec<f32> {
    let mut out = vec![0.0; rows.rows.len() / 4];
    wire::floats_from_bytes(&rows.rows, &mut out);
    out
}

async fn health(address: &str, service: &str) -> ServingStatus {
    let mut client = HealthClient::new(connect(address).await);
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    client
        .check(request)
        .await
        .expect("health")
        .get_ref()
        .status()
}

#[tokio::test]
async fn a_node_describes_itself_and_counts_its_work() {
    let node = node().await;
    assert_eq!(health(&node.address, "").await, ServingStatus::Serving);
    assert_eq!(
        health(&node.address, COMPUTE_SERVICE).await,
        ServingStatus::Serving
    );
    let mut talk = Talk::open(&node.address).await;
    talk.send(Kind::Work(work(1, 2.5))).await;
    assert_eq!(floats(&talk.rows().await), [2.5; 4]);
    let mut control = NodeControlClient::new(connect(&node.address).await);
    let reply = control
        .describe(pb::DescribeRequest::default())
        .await
        .expect("described");
    let info = wire::decode_node(reply.get_ref())
        .expect("well formed")
        .expect("our version");
    assert_eq!((info.shape, info.fingerprint), (SHAPE, FINGERPRINT));
    assert_eq!(
        (info.model.as_str(), info.weight_bytes, info.draining),
        ("echo", 11, false)
    );
    let counters = info.counters;
    assert_eq!((counters.calls, counters.expert_blocks), (1, 1));
    assert_eq!((counters.bytes_in, counters.bytes_out), (8 + 16, 16));
}

#[tokio::test]
async fn coordinators_that_do_not_fit_are_told_why() {
    let node = node().await;
    let mut other_version = hello(&FINGERPRINT, &SHAPE, PROTOCOL_VERSION);
    other_version.protocol_version = PROTOCOL_VERSION + 1;
    other_version.oldest_version = PROTOCOL_VERSION + 1;
    for (greeting, parts) in [
        (
            other_version,
            [
                format!("version {PROTOCOL_VERSION}"),
                format!("version {}", PROTOCOL_VERSION + 1),
            ],
        ),
        (
            hello(&[4; 32], &SHAPE, PROTOCOL_VERSION),
            ["03".repeat(32), "04".repeat(32)],
        ),
        (
            hello(
                &FINGERPRINT,
                &MoeShape {
                    experts_used: 9,
                    ..SHAPE
                },
                PROTOCOL_VERSION,
            ),
            ["computes 1 experts", "chooses 9"].map(str::to_owned),
        ),
    ] {
        let status = begin(&node.address, Kind::Hello(greeting))
            .await
            .expect_err("refused");
        assert_eq!(status.code(), Code::FailedPrecondition);
        for part in parts {
            assert!(status.message().contains(&part), "{}", status.message());
        }
    }
    let status = begin(&node.address, Kind::Work(work(1, 0.0)))
        .await
        .expect_err("no hello");
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn work_that_lies_is_refused_and_the_stream_goes_on() {
    let node = node().await;
    let mut talk = Talk::open(&node.address).await;
    let lies: [fn(&mut pb::Work); 7] = [
        |w| w.tokens = 4000,
        |w| {
            w.used = 3;
            w.routes = w.routes.repeat(3).into();
        },
        |w| w.layer = 2,
        |w| w.input = Bytes::from_static(b"short"),
        |w| w.format = 77,
        |w| w.rects = wire::encode_tiles(&TileSet::whole(GRID)),
        |w| w.deadline_ms = 0,
    ];
    for (id, lie) in (10..).zip(lies) {
        let mut work = work(id, 1.0);
        lie(&mut work);
        let damaged = work.clone();
        work.checksum = wire::checksum_of_work(&work);
        for (work, kind) in [
            (work, FailureKind::Invalid),
            (damaged, FailureKind::Corrupt),
        ] {
            talk.send(Kind::Work(work)).await;
            let failure = talk.failure().await;
            assert_eq!((failure.id, failure.kind()), (id, kind), "{failure:?}");
        }
    }
    talk.send(Kind::Work(work(1, 7.0))).await;
    assert_eq!(floats(&talk.rows().await), [7.0; 4]);
    assert_eq!(node.running.counters().refused, 14);
}

#[tokio::test]
async fn work_that_was_changed_on_its_way_is_not_computed() {
    let node = node().await;
    let mut talk = Talk::open(&node.address).await;
    let mut changed = work(1, 7.0);
    changed.routes = work(1, 7.5).routes;
    talk.send(Kind::Work(changed)).await;
    let failure = talk.failure().await;
    assert_eq!((failure.id, failure.kind()), (1, FailureKind::Corrupt));
    assert_eq!(node.running.counters().calls, 0);
    let sent = work(2, 7.0);
    let checksum = sent.checksum;
    talk.send(Kind::Work(sent)).await;
    let rows = wire::ReceivedRows::new(talk.rows().await, checksum);
    assert_eq!(rows.check(), Ok(wire::bytes_from_floats(&[7.0; 4])));
}

#[tokio::test]
async fn a_stream_that_breaks_the_protocol_ends_and_harms_no_other() {
    let node = node().await;
    let mut bystander = Talk::open(&node.address).await;
    node.delay_ms.store(100, Ordering::SeqCst);
    for messages in [
        vec![Kind::Hello(hello(&FINGERPRINT, &SHAPE, PROTOCOL_VERSION))],
        vec![Kind::Work(work(5, 1.0)), Kind::Work(work(5, 1.0))],
    ] {
        let mut talk = Talk::open(&node.address).await;
        for message in messages {
            talk.send(message).await;
        }
        let status = loop {
            match talk.reply().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a reason"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    bystander.send(Kind::Work(work(1, 4.0))).await;
    assert_eq!(floats(&bystander.rows().await), [4.0; 4]);
}

#[tokio::test]
async fn expired_and_cancelled_work_is_answered_as_such() {
    let node = node().await;
    node.delay_ms.store(200, Ordering::SeqCst);
    let mut talk = Talk::open(&node.address).await;
    let mut hasty = work(3, 1.0);
    hasty.deadline_ms = 20;
    hasty.checksum = wire::checksum_of_work(&hasty);
    for message in [
        Kind::Work(work(1, 1.0)),
        Kind::Work(work(2, 1.0)),
        Kind::Work(hasty),
        Kind::Cancel(pb::Cancel { id: 2 }),
        Kind::Cancel(pb::Cancel { id: 99 }),
    ] {
        talk.send(message).await;
    }
    assert_eq!(talk.rows().await.id, 1);
    let second = talk.failure().await;
    assert_eq!((second.id, second.kind()), (2, FailureKind::Cancelled));
    let third = talk.failure().await;
    assert_eq!((third.id, third.kind()), (3, FailureKind::Expired));
}

#[tokio::test]
async fn draining_turns_health_first_refuses_new_work_and_finishes_the_rest() {
    let node = node().await;
    node.delay_ms.store(600, Ordering::SeqCst);
    let mut talk = Talk::open(&node.address).await;
    talk.send(Kind::Work(work(1, 1.5))).await;
    while node.running.counters().bytes_in == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let stopping = tokio::spawn(node.running.stop());
    let start = Instant::now();
    while health(&node.address, COMPUTE_SERVICE).await != ServingStatus::NotServing {
        assert!(
            start.elapsed() < Duration::from_millis(500),
            "still serving"
        );
    }
    talk.send(Kind::Work(work(2, 1.0))).await;
    let refused = talk.failure().await;
    assert_eq!((refused.id, refused.kind()), (2, FailureKind::Draining));
    assert_eq!(floats(&talk.rows().await), [1.5; 4]);
    assert!(talk.reply().await.expect("a clean end").is_none());
    assert!(stopping.await.expect("stopped"), "all work was finished");
    assert!(
        TcpStream::connect(&node.address).await.is_err(),
        "still listening"
    );
}

#[tokio::test]
async fn a_node_that_cannot_finish_in_time_stops_anyway() {
    let node = node_with(NodeSettings {
        threads: 1,
        drain_timeout: Duration::from_millis(50),
        ..NodeSettings::default()
    })
    .await;
    node.delay_ms.store(3000, Ordering::SeqCst);
    let talk = Talk::open(&node.address).await;
    talk.send(Kind::Work(work(1, 1.0))).await;
    while node.running.counters().bytes_in == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let start = Instant::now();
    assert!(!node.running.stop().await, "the work cannot be finished");
    assert!(start.elapsed() < Duration::from_millis(2900));
}

#[tokio::test]
async fn a_coordinator_that_reads_nothing_does_not_hold_up_the_stop() {
    let node = node_with(NodeSettings {
        threads: 1,
        drain_timeout: Duration::from_secs(10),
        ..NodeSettings::default()
    })
    .await;
    let endpoint = channel::endpoint(&node.address).expect("endpoint");
    let narrow = endpoint
        .initial_stream_window_size(1024)
        .initial_connection_window_size(1 << 16);
    let mut client = channel::compute_client(narrow.connect().await.expect("connection"));
    let (to_node, requests) = mpsc::channel(256);
    let mut invalid = work(1, 1.0);
    invalid.layer = 77;
    let mut messages = vec![Kind::Hello(hello(&FINGERPRINT, &SHAPE, PROTOCOL_VERSION))];
    messages.extend(vec![Kind::Work(invalid); 200]);
    for kind in messages {
        to_node.try_send(wire::request(kind)).expect("room");
    }
    let answer = client.compute(ReceiverStream::new(requests)).await;
    let _unread = answer.expect("stream").into_inner();
    let mut seen = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let refused = node.running.counters().refused;
        if refused > 0 && refused == seen {
            break;
        }
        seen = refused;
    }
    assert!(seen < 200, "everything was answered");
    let start = Instant::now();
    node.running.stop().await;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn memory_for_calls_is_shared_by_all_coordinators_and_comes_back() {
    let node = node_with(NodeSettings {
        threads: 1,
        memory: 2 << 10,
        ..NodeSettings::default()
    })
    .await;
    node.delay_ms.store(300, Ordering::SeqCst);
    let hoarder = Talk::open(&node.address).await;
    let mut other = Talk::open(&node.address).await;
    for id in 1..=2 {
        hoarder.send(Kind::Work(work(id, 1.0))).await;
    }
    while node.running.counters().bytes_in < 2 * 24 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    other.send(Kind::Work(work(1, 4.0))).await;
    let failure = other.failure().await;
    assert_eq!(failure.kind(), FailureKind::Busy, "{failure:?}");
    drop(hoarder);
    let start = Instant::now();
    let rows = loop {
        other.send(Kind::Work(work(1, 4.0))).await;
        match other.reply().await.expect("reply") {
            Some(Reply::Rows(rows)) => break rows,
            _ => assert!(start.elapsed() < WAIT, "the room never came back"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(floats(&rows), [4.0; 4]);
}

#[tokio::test]
async fn a_coordinator_that_vanishes_takes_its_queued_work_with_it() {
    let node = node().await;
    node.delay_ms.store(150, Ordering::SeqCst);
    let talk = Talk::open(&node.address).await;
    for id in 1..=5 {
        talk.send(Kind::Work(work(id, 1.0))).await;
    }
    while node.running.counters().bytes_in < 5 * 24 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(talk);
    let start = Instant::now();
    while node.running.counters().dropped < 3 {
        assert!(
            start.elapsed() < WAIT,
            "the queue was computed although the coordinator is gone"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
