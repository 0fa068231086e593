use std::path::{Path, PathBuf};
use std::time::Duration;

use ds4_common::gguf::GgufModel;
use ds4_common::model::synthetic::{Recipe, presets, write};
use ds4_common::model::{HyperParams, ModelTensors};
use ds4_common::quant::Layout;
use ds4_common::slice::{Slice, SliceWriter, WholeModel, copy_tensor, part_path, verify};
use ds4_common::tiles::{Holdings, TileSet};
use ds4_expert_node::pull::{PullConfig, PullError, ensure};
use ds4_proto::pb::{self, fetch_reply};
use ds4_proto::security::Security;
use ds4_proto::wire::{decode_offer, offer_request, seal};
use ds4_proto::{channel, gate};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::Code;

use super::{ShareSettings, Shares, SliceShare, serve};

const WAIT: Duration = Duration::from_secs(20);

fn model(folder: &Path, seed: u64) -> WholeModel {
    let path = folder.join(format!("model-{seed}.gguf"));
    let recipe = Recipe {
        seed,
        ..Recipe::default()
    };
    let hp = HyperParams {
        expert_width: 768,
        ..presets::tiny()
    };
    write(&path, &hp, &recipe).unwrap();
    let gguf = GgufModel::open(&path).unwrap();
    let hp = HyperParams::from_model(&gguf).unwrap();
    let tensors = ModelTensors::bind(&gguf, &hp).unwrap();
    WholeModel::new(gguf, hp, &tensors).unwrap()
}

/// The model's grid cut into three strips.
fn shares(model: WholeModel) -> Shares {
    let grid = model.grid();
    let nodes = grid.cut(1, 3).unwrap().into_iter().enumerate();
    let uniform = |rect| {
        Holdings::uniform(
            grid,
            model.layers(),
            TileSet::new(grid, vec![rect]).unwrap(),
        )
    };
    let nodes = nodes.map(|(i, rect)| (format!("node-{i}"), uniform(rect)));
    let nodes = nodes.collect();
    Shares::new(model, nodes, true, Layout::Panels).unwrap()
}

struct Source {
    folder: TempDir,
    shares: Shares,
    address: String,
    task: tokio::task::JoinHandle<()>,
}

impl Source {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shares = shares(model(folder.path(), 1));
        let mut source = Source {
            folder,
            shares,
            address: String::new(),
            task: tokio::spawn(async {}),
        };
        source.restart("127.0.0.1:0", source.shares.clone()).await;
        source
    }

    async fn restart(&mut self, listen: &str, shares: Shares) {
        self.task.abort();
        let _ = (&mut self.task).await;
        let listener = TcpListener::bind(listen).await.unwrap();
        self.address = listener.local_addr().unwrap().to_string();
        let share = SliceShare::new(shares, ShareSettings { fetches: 2 });
        self.task = tokio::spawn(async {
            let incoming = gate::incoming(listener, None);
            let _ = serve(incoming, share, std::future::pending()).await;
        });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("data").join(name)
    }

    fn pull(&self, node: &str) -> PullConfig {
        PullConfig {
            path: self.path(&format!("{node}.gguf")),
            node: node.to_owned(),
            coordinator: Some(self.address.clone()),
            security: Security::Loopback,
            timeout: Duration::from_secs(5),
        }
    }

    /// The slice as the command would write it.
    fn cut(&self, number: usize) -> Vec<u8> {
        let path = self.folder.path().join("cut.gguf");
        let head = self.shares.all()[number].head.clone();
        let mut writer = SliceWriter::open(&path, head, &mut |_| {}).unwrap();
        while writer.position().is_some() {
            copy_tensor(self.shares.model(), &mut writer, &mut |_| {}).unwrap();
        }
        writer.finish().unwrap();
        std::fs::read(&path).unwrap()
    }
}

async fn ensure_in_time(config: &PullConfig) -> Result<(), PullError> {
    let done = tokio::time::timeout(WAIT, ensure(config)).await;
    done.expect("a pull has an end")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pulled_slice_is_the_one_that_the_command_writes() {
    let source = Source::start().await;
    for (number, node) in ["node-0", "expert-1", "node-2"].into_iter().enumerate() {
        let config = source.pull(node);
        ensure_in_time(&config).await.unwrap();
        let pulled = std::fs::read(&config.path).unwrap();
        assert!(pulled == source.cut(number), "{node}");
        assert!(!part_path(&config.path).exists());
        // The slice is complete, so nothing happens.
        let before = std::fs::metadata(&config.path).unwrap().modified().unwrap();
        ensure_in_time(&config).await.unwrap();
        let after = std::fs::metadata(&config.path).unwrap().modified().unwrap();
        assert_eq!(before, after);
    }
    let refused = ensure_in_time(&source.pull("node-7")).await.unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("node-7") && text.contains("node-1"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_resumes_and_repairs_what_is_wrong() {
    let source = Source::start().await;
    let config = source.pull("node-1");
    std::fs::create_dir_all(config.path.parent().unwrap()).unwrap();
    let head = source.shares.all()[1].head.clone();
    {
        let mut writer = SliceWriter::open(&config.path, head, &mut |_| {}).unwrap();
        for _ in 0..5 {
            copy_tensor(source.shares.model(), &mut writer, &mut |_| {}).unwrap();
        }
        writer.append(&[7; 99]).unwrap();
    }
    let part = part_path(&config.path);
    let mut bytes = std::fs::read(&part).unwrap();
    let third = source.shares.all()[1].head.tensors()[2].offset as usize;
    bytes[third] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    ensure_in_time(&config).await.unwrap();
    assert!(std::fs::read(&config.path).unwrap() == source.cut(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_coordinator_is_waited_for_but_not_for_ever() {
    let mut source = Source::start().await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let mut config = source.pull("node-0");
    config.coordinator = Some(address.clone());
    config.timeout = Duration::from_millis(300);
    let error = ensure_in_time(&config).await.unwrap_err();
    assert!(matches!(error, PullError::Away { .. }), "{error}");
    assert!(error.to_string().contains(&address), "{error}");

    config.timeout = WAIT;
    let wanted = config.clone();
    let waiting = tokio::spawn(async move { ensure_in_time(&wanted).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    source.restart(&address, source.shares.clone()).await;
    waiting.await.unwrap().unwrap();

    // With a complete slice the coordinator is not needed.
    source.task.abort();
    ensure_in_time(&config).await.unwrap();
    config.coordinator = None;
    ensure_in_time(&config).await.unwrap();
    config.path = source.path("other.gguf");
    let error = ensure_in_time(&config).await.unwrap_err();
    assert!(matches!(error, PullError::NoSlice { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_model_replaces_the_slice() {
    let mut source = Source::start().await;
    let config = source.pull("node-2");
    ensure_in_time(&config).await.unwrap();
    let first = Slice::open(&config.path).unwrap().head().fingerprint();
    let other = shares(model(source.folder.path(), 2));
    let expected = other.model().fingerprint();
    source.restart(&source.address.clone(), other).await;
    ensure_in_time(&config).await.unwrap();
    let slice = Slice::open(&config.path).unwrap();
    assert_ne!(expected, first);
    assert_eq!(slice.head().fingerprint(), expected);
    assert!(verify(&slice, &mut |_| {}).unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_out_of_bounds_are_refused_and_an_offset_keeps_the_hash() {
    let source = Source::start().await;
    let channel = channel::endpoint(&source.address).unwrap().connect_lazy();
    let mut offers = channel::offer_client(channel.clone());
    let offer = offers.offer(offer_request("node-0")).await.unwrap();
    let head = decode_offer(offer.get_ref(), Path::new("offer")).unwrap();
    let mut longer = offer.into_inner();
    longer.file_bytes += 1;
    assert!(
        decode_offer(&longer, Path::new("offer")).is_err(),
        "its checksum"
    );
    assert!(decode_offer(&seal(longer), Path::new("offer")).is_err());

    let mut old = offer_request("node-0");
    old.protocol_version += 9;
    old.oldest_version += 9;
    let refused = offers.offer(old).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let refused = offers.offer(offer_request("../node-0")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    let good = pb::FetchRequest {
        node: "node-0".to_owned(),
        slice: head.identity().as_bytes().to_vec().into(),
        tensor: 4,
        offset: 0,
    };
    let bytes = head.tensors()[4].bytes;
    let mut fetches = channel::fetch_client(channel);
    for (bad, code) in [
        (
            pb::FetchRequest {
                tensor: u32::MAX,
                ..good.clone()
            },
            Code::InvalidArgument,
        ),
        (
            pb::FetchRequest {
                offset: bytes + 1,
                ..good.clone()
            },
            Code::InvalidArgument,
        ),
        (
            pb::FetchRequest {
                slice: vec![1; 32].into(),
                ..good.clone()
            },
            Code::FailedPrecondition,
        ),
        (
            pb::FetchRequest {
                slice: vec![1; 31].into(),
                ..good.clone()
            },
            Code::InvalidArgument,
        ),
        (
            pb::FetchRequest {
                node: "stranger".to_owned(),
                ..good.clone()
            },
            Code::NotFound,
        ),
    ] {
        assert_eq!(fetches.fetch(bad).await.unwrap_err().code(), code);
    }
    let mut hashes = Vec::new();
    for offset in [0, 1, bytes - 1, bytes] {
        let request = pb::FetchRequest {
            offset,
            ..good.clone()
        };
        let mut stream = fetches.fetch(request).await.unwrap().into_inner();
        let mut got = 0;
        while let Some(reply) = stream.message().await.unwrap() {
            match reply.kind.unwrap() {
                fetch_reply::Kind::Data(data) => got += data.len() as u64,
                fetch_reply::Kind::End(end) => hashes.push(end.hash),
            }
        }
        assert_eq!(got, bytes - offset);
    }
    assert_eq!(hashes.len(), 4);
    hashes.dedup();
    assert_eq!(hashes.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_go_away_give_their_permit_back() {
    let source = Source::start().await;
    let channel = channel::endpoint(&source.address).unwrap().connect_lazy();
    let slice = source.shares.all()[0].head.identity();
    let request = pb::FetchRequest {
        node: "node-0".to_owned(),
        slice: slice.as_bytes().to_vec().into(),
        tensor: 0,
        offset: 0,
    };
    let mut fetches = channel::fetch_client(channel);
    // As many as may run at once, dropped without reading.
    for _ in 0..2 {
        let stream = fetches.fetch(request.clone()).await.unwrap();
        drop(stream);
    }
    ensure_in_time(&source.pull("node-0")).await.unwrap();
}
