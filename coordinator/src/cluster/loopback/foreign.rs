//! Nodes that do not fit the cluster or break the protocol: other models, versions, tiles, replies.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use ds4_proto::limits::{MAX_MESSAGE_BYTES, PROTOCOL_VERSION};
use ds4_proto::pb::expert_compute_server::ExpertCompute;
use ds4_proto::pb::node_control_server::{NodeControl, NodeControlServer};
use ds4_proto::pb::{self, compute_reply, compute_request};
use ds4_proto::wire::{self, Mismatch, Versions};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

use super::*;

/// A node that describes itself as told and answers each work item with `answer`.
#[derive(Clone)]
pub(super) struct Impostor {
    describe: pb::DescribeReply,
    answer: fn(pb::Work) -> compute_reply::Kind,
}

impl Impostor {
    pub(super) fn new(answer: fn(pb::Work) -> compute_reply::Kind) -> Self {
        Impostor {
            describe: pb::DescribeReply {
                protocol_version: PROTOCOL_VERSION,
                fingerprint: FINGERPRINT.to_vec().into(),
                layers: SHAPE.layers as u32,
                hidden: SHAPE.hidden as u32,
                used: SHAPE.experts_used as u32,
                grid_experts: GRID.experts,
                grid_blocks: GRID.blocks,
                held: ds4_proto::wire::encode_tiles(&TileSet::whole(GRID)),
                ..Default::default()
            },
            answer,
        }
    }

    fn honest() -> Self {
        Self::new(|work| rows(&work, work.tokens as usize * SHAPE.hidden))
    }

    /// Serves until the runtime ends; returns the address.
    fn serve(self, runtime: &Runtime) -> String {
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
            let address = listener.local_addr().expect("address").to_string();
            let server = tonic::transport::Server::builder()
                .add_service(NodeControlServer::new(self.clone()))
                .add_service(ds4_proto::channel::compute_server(self, MAX_MESSAGE_BYTES));
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
            address
        })
    }
}

/// So many zeros, with the right checksum.
fn rows(work: &pb::Work, floats: usize) -> compute_reply::Kind {
    let values = vec![0.0; floats];
    let checksum = wire::rows_checksum(&values, work.checksum);
    compute_reply::Kind::Rows(wire::rows_message(work.id, &values, checksum, 0, 0))
}

/// Rows for a call that was never made.
fn confused(mut work: pb::Work) -> compute_reply::Kind {
    work.id += 77;
    rows(&work, 8)
}

#[tonic::async_trait]
impl NodeControl for Impostor {
    async fn describe(
        &self,
        _: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::DescribeReply>, Status> {
        Ok(Response::new(wire::seal(self.describe.clone())))
    }
}

#[tonic::async_trait]
impl ExpertCompute for Impostor {
    type ComputeStream =
        Pin<Box<dyn futures::Stream<Item = Result<pb::ComputeReply, Status>> + Send>>;

    async fn compute(
        &self,
        request: Request<Streaming<pb::ComputeRequest>>,
    ) -> Result<Response<Self::ComputeStream>, Status> {
        let (held, answer) = (self.describe.held.clone(), self.answer);
        let replies = request.into_inner().map(move |message| {
            let kind = match message?.kind {
                Some(compute_request::Kind::Hello(_)) => {
                    compute_reply::Kind::Welcome(pb::Welcome {
                        max_in_flight: 4,
                        held: held.clone(),
                        held_layers: Vec::new(),
                    })
                }
                Some(compute_request::Kind::Work(work)) => answer(work),
                Some(compute_request::Kind::Cancel(_)) | None => {
                    return Err(Status::cancelled("done"));
                }
            };
            Ok(wire::reply(kind))
        });
        Ok(Response::new(Box::pin(replies)))
    }
}

fn connect_to(cluster: &Cluster, impostor: Impostor) -> Result<ClusterBackend, ClusterError> {
    let options = ClusterOptions {
        nodes: vec![impostor.serve(&cluster.runtime)],
        startup_timeout: Duration::from_secs(5),
        deadline: Duration::from_millis(500),
        ..quick()
    };
    cluster.connect_with(&options)
}

#[test]
fn another_model_is_refused_with_both_fingerprints() {
    let cluster = Cluster::whole(1);
    let options = ClusterOptions {
        nodes: cluster.addresses(),
        ..quick()
    };
    let expected = Expectation {
        fingerprint: [9; 32],
        shape: SHAPE,
    };
    let error = cluster
        .runtime
        .block_on(ClusterBackend::connect(&options, &expected, None))
        .expect_err("another model");
    let text = error.to_string();
    assert!(text.contains(&cluster.addresses()[0]), "{text}");
    assert!(
        text.contains(&"05".repeat(32)) && text.contains(&"09".repeat(32)),
        "{text}"
    );
}

#[test]
fn another_protocol_version_is_refused_with_both_versions() {
    let cluster = Cluster::new();
    let mut impostor = Impostor::honest();
    impostor.describe.protocol_version = PROTOCOL_VERSION + 6;
    let error = connect_to(&cluster, impostor).expect_err("another version");
    let expected = Mismatch::Version {
        node: Versions::of(0, PROTOCOL_VERSION + 6),
        coordinator: Versions::OURS,
    };
    assert!(
        matches!(&error, ClusterError::Mismatch { mismatch, .. } if *mismatch == expected),
        "{error}"
    );
}

#[test]
fn another_shape_or_nonsense_is_refused() {
    let cluster = Cluster::new();
    let mut wider = Impostor::honest();
    wider.describe.hidden += 1;
    let error = connect_to(&cluster, wider).expect_err("another shape");
    assert!(matches!(error, ClusterError::Shape { .. }), "{error}");
    let mut busier = Impostor::honest();
    busier.describe.used += 4;
    let error = connect_to(&cluster, busier).expect_err("another router");
    let text = error.to_string();
    assert!(
        text.contains("3 experts per token") && text.contains("7 experts per token"),
        "{text}"
    );
    let mut absurd = Impostor::honest();
    absurd.describe.grid_experts = u32::MAX;
    let error = connect_to(&cluster, absurd).expect_err("nonsense");
    assert!(matches!(error, ClusterError::Malformed { .. }), "{error}");
}

#[test]
fn tiles_without_a_replica_are_named() {
    let strips = GRID.cut(1, 3).expect("cut");
    let cluster = Cluster::with_nodes(&[vec![strips[0]], vec![strips[2]]]);
    let error = cluster.connect(None).expect_err("not covered");
    assert!(
        matches!(
            &error,
            ClusterError::Uncovered { layer: 0, tiles } if *tiles == [strips[1]]
        ),
        "{error}"
    );
    assert!(
        error.to_string().contains("experts 0..6 blocks 1..2"),
        "{error}"
    );
}

#[test]
fn bad_lists_are_refused() {
    let cluster = Cluster::new();
    let connect = |nodes: &[&str]| {
        let options = ClusterOptions {
            nodes: nodes.iter().map(ToString::to_string).collect(),
            startup_timeout: Duration::from_millis(300),
            ..quick()
        };
        cluster.connect_with(&options).expect_err("refused")
    };
    assert!(matches!(connect(&[]), ClusterError::NoNodes));
    assert!(matches!(
        connect(&["a:1", "a:1"]),
        ClusterError::Duplicate(_)
    ));
    assert!(matches!(
        connect(&["not an address"]),
        ClusterError::Address { .. }
    ));
}

#[test]
fn rows_of_another_length_are_malformed() {
    let cluster = Cluster::new();
    let liar = Impostor::new(|work| rows(&work, 3));
    let backend = connect_to(&cluster, liar).expect("cluster");
    let error = compute(&backend, &batch(0, 2)).expect_err("short rows");
    assert!(matches!(error, ExpertError::Malformed { .. }), "{error}");
    assert!(
        error.to_string().contains("12 bytes of rows instead of 64"),
        "{error}"
    );
}

#[test]
fn answers_to_calls_that_were_never_made_end_the_stream() {
    let cluster = Cluster::new();
    let confused = Impostor::new(confused);
    let backend = connect_to(&cluster, confused).expect("cluster");
    let error = compute(&backend, &batch(0, 1)).expect_err("no answer");
    assert!(
        matches!(
            error,
            ExpertError::Unreachable { .. } | ExpertError::Deadline { .. }
        ),
        "{error}"
    );
}

#[test]
fn a_node_that_breaks_every_stream_is_tried_ever_less_often() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let cluster = Cluster::new();
    let confused = Impostor::new(|work| {
        CALLS.fetch_add(1, Ordering::SeqCst);
        confused(work)
    });
    let backend = connect_to(&cluster, confused).expect("cluster");
    compute(&backend, &batch(0, 1)).expect_err("no answer");
    // Within 500 ms: at once, and after pauses of 50, 100, 200 ms.
    let calls = CALLS.load(Ordering::SeqCst);
    assert!((2..=5).contains(&calls), "{calls}");
}

#[test]
fn a_node_that_drains_forever_is_left() {
    let cluster = Cluster::new();
    let draining = Impostor::new(|work| {
        compute_reply::Kind::Failure(pb::Failure {
            id: work.id,
            kind: pb::FailureKind::Draining.into(),
            message: String::new(),
        })
    });
    let backend = connect_to(&cluster, draining).expect("cluster");
    let error = compute(&backend, &batch(0, 1)).expect_err("it takes no work");
    assert!(error.to_string().contains("shutting down"), "{error}");
}

#[test]
fn a_refusal_reaches_the_caller_on_one_line() {
    let cluster = Cluster::new();
    let rude = Impostor::new(|work| {
        compute_reply::Kind::Failure(pb::Failure {
            id: work.id,
            kind: pb::FailureKind::Internal.into(),
            message: format!("no\n{}", "x".repeat(5000)),
        })
    });
    let backend = connect_to(&cluster, rude).expect("cluster");
    let error = compute(&backend, &batch(0, 1)).expect_err("refused");
    let ExpertError::Refused { reason, .. } = error else {
        panic!("{error}");
    };
    assert!(
        reason.starts_with("no xxx") && reason.len() <= 512,
        "{reason}"
    );
}

/// The impostor, listed before an honest node; both hold all tiles.
pub(super) fn beside_an_honest_node(
    answer: fn(pb::Work) -> compute_reply::Kind,
) -> (Cluster, ClusterBackend, Arc<script::FallbackScript>) {
    let cluster = Cluster::whole(1);
    let options = ClusterOptions {
        nodes: vec![
            Impostor::new(answer).serve(&cluster.runtime),
            cluster.addresses()[0].clone(),
        ],
        ..quick()
    };
    let (backend, fallback) = cluster.connect_with_fallback(&options);
    (cluster, backend, fallback)
}

#[test]
fn a_node_that_answers_with_garbage_is_replaced_within_the_layer() {
    let answers: [fn(pb::Work) -> compute_reply::Kind; 3] = [
        |work| rows(&work, 3),
        confused,
        |work| {
            compute_reply::Kind::Failure(pb::Failure {
                id: work.id,
                kind: pb::FailureKind::Internal.into(),
                message: "no".to_owned(),
            })
        },
    ];
    for answer in answers {
        let (cluster, backend, fallback) = beside_an_honest_node(answer);
        for i in 0..20 {
            check(&backend, &batch(i % SHAPE.layers, 1 + i % 5));
        }
        assert_eq!(
            fallback.computed.load(Ordering::SeqCst),
            0,
            "the honest node could"
        );
        assert!(cluster.nodes[0].counters().calls >= 20);
    }
}

#[test]
fn the_local_fallback_replaces_the_only_node_that_answers_with_garbage() {
    let cluster = Cluster::new();
    let options = ClusterOptions {
        nodes: vec![Impostor::new(|work| rows(&work, 3)).serve(&cluster.runtime)],
        ..quick()
    };
    let (backend, fallback) = cluster.connect_with_fallback(&options);
    for i in 0..8 {
        check(&backend, &batch(i % SHAPE.layers, 2));
    }
    assert!(fallback.computed.load(Ordering::SeqCst) >= 8 * u64::from(GRID.blocks));
}

#[test]
fn a_node_of_older_software_is_described_but_not_measured() {
    let cluster = Cluster::new();
    let address = Impostor::honest().serve(&cluster.runtime);
    let security = ds4_proto::security::Security::Loopback;
    let timeout = Duration::from_secs(20);
    let addresses = [address];
    let reports = crate::calibrate::nodes(&addresses, &security, timeout);
    let mut reports = cluster.runtime.block_on(reports);
    let report = reports.remove(0).expect("a report");
    assert!(report.measured.is_none());
    assert!(report.round_trip > Duration::ZERO);
}
