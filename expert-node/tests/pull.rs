//! A node that pulls its slice from a coordinator that breaks the rules.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ds4_common::gguf::GgufModel;
use ds4_common::model::ModelTensors;
use ds4_common::model::synthetic::{Recipe, presets, write};
use ds4_common::quant::Layout;
use ds4_common::slice::{SliceHead, WholeModel, part_path};
use ds4_common::tiles::{Holdings, TileSet};
use ds4_expert_node::pull::{PullConfig, PullError, ensure};
use ds4_proto::limits::{PROTOCOL_VERSION, SLICE_CHUNK_BYTES};
use ds4_proto::pb::fetch_reply::Kind;
use ds4_proto::pb::slice_source_server::SliceSource;
use ds4_proto::security::Security;
use ds4_proto::wire::seal;
use ds4_proto::{channel, gate, pb};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::Iter;
use tonic::{Request, Response, Status};

type Replies = Vec<Result<pb::FetchReply, Status>>;

/// What a script answers to a fetch, from the true bytes of the tensor, the offset, and how many
/// fetches there were.
type Answer = fn(Vec<u8>, usize, u32) -> Replies;

/// A coordinator that answers by a script.
#[derive(Clone)]
struct Script {
    offer: pb::OfferReply,
    model: WholeModel,
    head: SliceHead,
    answer: Answer,
    fetches: Arc<AtomicU32>,
}

#[tonic::async_trait]
impl SliceSource for Script {
    async fn offer(
        &self,
        _: Request<pb::OfferRequest>,
    ) -> Result<Response<pb::OfferReply>, Status> {
        Ok(Response::new(seal(self.offer.clone())))
    }

    type FetchStream = Iter<std::vec::IntoIter<Result<pb::FetchReply, Status>>>;

    async fn fetch(
        &self,
        request: Request<pb::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let request = request.into_inner();
        let tensor = &self.head.tensors()[request.tensor as usize];
        let mut bytes = vec![0; tensor.bytes as usize];
        self.model.cut(tensor).read(0, &mut bytes).expect("read");
        let fetch = self.fetches.fetch_add(1, Ordering::Relaxed);
        let replies = (self.answer)(bytes, request.offset as usize, fetch);
        Ok(Response::new(tokio_stream::iter(replies)))
    }
}

fn data(bytes: Vec<u8>) -> Result<pb::FetchReply, Status> {
    let kind = Some(Kind::Data(Bytes::from(bytes)));
    Ok(pb::FetchReply { kind })
}

fn end(hash: Vec<u8>) -> Result<pb::FetchReply, Status> {
    let hash = hash.into();
    let kind = Some(Kind::End(pb::FetchEnd { hash }));
    Ok(pb::FetchReply { kind })
}

/// The tensor as it should come.
fn honest(bytes: Vec<u8>, offset: usize) -> Replies {
    let hash = ds4_common::slice::Hasher::new().update(&bytes).finalize();
    let mut replies: Replies = bytes[offset..]
        .chunks(SLICE_CHUNK_BYTES)
        .map(|chunk| data(chunk.to_vec()))
        .collect();
    replies.push(end(hash.as_bytes().to_vec()));
    replies
}

fn script(folder: &Path, answer: Answer) -> Script {
    let path = folder.join("m.gguf");
    let hp = presets::tiny();
    write(&path, &hp, &Recipe::default()).expect("model");
    let gguf = GgufModel::open(&path).expect("model");
    let tensors = ModelTensors::bind(&gguf, &hp).expect("tensors");
    let model = WholeModel::new(gguf, hp, &tensors).expect("model");
    let whole = TileSet::whole(model.grid());
    let holdings = Holdings::uniform(model.grid(), model.layers(), whole);
    let head = model.head(&holdings, Layout::Plain).expect("head");
    Script {
        offer: pb::OfferReply {
            protocol_version: PROTOCOL_VERSION,
            oldest_version: 0,
            software: "script".to_owned(),
            head: head.encode().expect("head").into(),
            file_bytes: head.file_bytes(),
            checksum: 0,
        },
        model,
        head,
        answer,
        fetches: Arc::default(),
    }
}

async fn pull(folder: &TempDir, script: Script) -> (PathBuf, Result<(), PullError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
    let config = PullConfig {
        path: folder.path().join("node.gguf"),
        node: "node".to_owned(),
        coordinator: Some(listener.local_addr().expect("address").to_string()),
        security: Security::Loopback,
        timeout: Duration::from_millis(600),
    };
    let server = channel::server()
        .add_service(channel::slice_server(script))
        .serve_with_incoming(gate::incoming(listener, None));
    let server = tokio::spawn(server);
    let pulled = tokio::time::timeout(Duration::from_secs(20), ensure(&config)).await;
    server.abort();
    (config.path, pulled.expect("a pull has an end"))
}

#[tokio::test]
async fn wrong_data_ends_the_pull_with_the_tensor_named() {
    let answers: [(Answer, &str); 6] = [
        (
            |bytes, _, _| vec![data(bytes), end(vec![9; 32])],
            "has the hash",
        ),
        (
            |bytes, _, _| vec![data(bytes), end(vec![9; 31])],
            "31 bytes",
        ),
        (
            |mut bytes, _, _| {
                bytes.push(0);
                honest(bytes, 0)
            },
            "are missing",
        ),
        (
            |bytes, _, _| honest(bytes[1..].to_vec(), 0),
            "lacks 1 bytes",
        ),
        (|_, _, _| vec![data(Vec::new())], "a part of 0 bytes"),
        (
            |_, _, _| vec![Ok(pb::FetchReply { kind: None })],
            "without data",
        ),
    ];
    for (answer, reason) in answers {
        let folder = tempfile::tempdir().expect("folder");
        let (path, pulled) = pull(&folder, script(folder.path(), answer)).await;
        let error = pulled.expect_err(reason).to_string();
        assert!(error.contains("blk.0.ffn_gate_exps.e0-8.b0-1"), "{error}");
        assert!(error.contains(reason), "{error}");
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn a_fault_that_passes_costs_nothing_but_time() {
    // A wrong end, a stream that breaks in the middle, one that breaks at once.
    let answer: Answer = |mut bytes, offset, fetch| match fetch % 6 {
        0 => vec![data(bytes.split_off(offset)), end(vec![9; 32])],
        2 => {
            let half = bytes[offset..(offset + bytes.len()) / 2].to_vec();
            vec![data(half), Err(Status::unavailable("not now"))]
        }
        4 => vec![Err(Status::unavailable("not now"))],
        _ => honest(bytes, offset),
    };
    let folder = tempfile::tempdir().expect("folder");
    let (path, pulled) = pull(&folder, script(folder.path(), answer)).await;
    pulled.expect("a slice");
    let slice = ds4_common::slice::Slice::open(&path).expect("slice");
    let faults = ds4_common::slice::verify(&slice, &mut |_| {}).expect("read");
    assert!(faults.is_empty());
    assert!(!part_path(&path).exists());
}

#[tokio::test]
async fn a_stream_that_never_gives_anything_is_given_up() {
    for answer in [(|_, _, _| Vec::new()) as Answer, |_, _, _| {
        vec![Err(Status::internal("always"))]
    }] {
        let folder = tempfile::tempdir().expect("folder");
        let (_, pulled) = pull(&folder, script(folder.path(), answer)).await;
        let error = pulled.expect_err("nothing");
        assert!(matches!(error, PullError::Away { .. }), "{error}");
    }
}

/// What a liar does to an offer.
type Change = fn(&mut pb::OfferReply);

#[tokio::test]
async fn offers_that_lie_are_refused_before_anything_is_written() {
    let changes: [(Change, &str); 6] = [
        (|offer| offer.file_bytes = u64::MAX, "length"),
        (|offer| offer.file_bytes -= 1, "bytes"),
        (|offer| offer.head = Bytes::new(), "length"),
        (
            |offer| offer.head = Bytes::from_static(b"GGUF"),
            "truncated",
        ),
        (|offer| offer.protocol_version += 1, "protocol version"),
        (
            |offer| {
                let mut head = offer.head.to_vec();
                let at = head.windows(5).position(|word| word == b"plain");
                let at = at.expect("the layout");
                head[at..at + 5].copy_from_slice(b"tiled");
                offer.head = head.into();
            },
            "tiled",
        ),
    ];
    for (change, reason) in changes {
        let folder = tempfile::tempdir().expect("folder");
        let mut script = script(folder.path(), |bytes, offset, _| honest(bytes, offset));
        change(&mut script.offer);
        let (path, pulled) = pull(&folder, script).await;
        let error = pulled.expect_err(reason).to_string();
        assert!(error.contains(reason), "{reason}: {error}");
        assert!(!path.exists() && !part_path(&path).exists());
    }
}
