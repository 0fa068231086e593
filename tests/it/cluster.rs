//! Clusters of the real binaries: logits are bit-identical wherever the experts are computed.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use ds4_common::gguf::GgufModel;
use ds4_common::model::HyperParams;
use ds4_proto::pb::node_control_client::NodeControlClient;
use ds4_proto::pb::{Counters, DescribeRequest};
use ds4_tests::golden::{ALL, Reference};
use ds4_tests::process::{Server, resident_kilobytes, run};
use tempfile::TempDir;
use tonic::transport::Endpoint;

pub(crate) const COORD: &str = env!("CARGO_BIN_EXE_coord_under_test");
pub(crate) const NODE: &str = env!("CARGO_BIN_EXE_node_under_test");

/// Runs `ds4-coord logits` on the model's `rand` tokens and returns the bytes of the file it
/// writes.
pub(crate) fn logits(reference: Reference, args: &[&str]) -> Vec<u8> {
    let folder = TempDir::new().expect("folder");
    let out = folder.path().join("logits.npy");
    let tokens = reference.folder().join("rand.tokens.json");
    let model = reference.model();
    let paths = [&model, &tokens, &out].map(|p| p.to_str().expect("utf-8").to_owned());
    let mut all = vec![
        "logits", "-m", &paths[0], "--tokens", &paths[1], "--out", &paths[2],
    ];
    all.extend(args);
    let output = run(COORD, &all).expect("run");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    std::fs::read(&out).expect("logits")
}

/// Starts a node process that reads the reference model; returns it with its address.
pub(crate) fn node(reference: Reference, args: &[&str]) -> (Server, String) {
    node_at(reference, "127.0.0.1:0", args)
}

fn node_at(reference: Reference, listen: &str, args: &[&str]) -> (Server, String) {
    let model = reference.model();
    let mut all = vec!["-m", model.to_str().expect("utf-8"), "--listen", listen];
    all.extend(args);
    start_node(&all)
}

/// Starts a node process with exactly these flags; returns it with its address.
pub(crate) fn start_node(args: &[&str]) -> (Server, String) {
    let args = [&["serve"], args].concat();
    let server = Server::start(NODE, &args).expect("node");
    let address = server.ready.split(&[' ', ':'][..]).collect::<Vec<_>>();
    let at = address
        .iter()
        .position(|word| *word == "127.0.0.1")
        .expect("an address");
    let address = format!("127.0.0.1:{}", address[at + 1]);
    (server, address)
}

fn counters(address: &str) -> Counters {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let describe = async {
        let channel = Endpoint::from_shared(format!("http://{address}"))?
            .connect()
            .await?;
        let mut client = NodeControlClient::new(channel);
        let reply = client.describe(DescribeRequest::default()).await?;
        anyhow::Ok(reply.into_inner().counters.unwrap_or_default())
    };
    let limit = Duration::from_secs(20);
    let waited = runtime.block_on(async { tokio::time::timeout(limit, describe).await });
    waited.expect("an answer within 20 s").expect("description")
}

fn hyper_params(reference: Reference) -> HyperParams {
    HyperParams::from_model(&GgufModel::open(&reference.model()).expect("model")).expect("shape")
}

#[test]
fn embedded_nodes_and_grids_do_not_change_a_bit() {
    for reference in ALL {
        let direct = logits(reference, &["--embedded", "0"]);
        for nodes in ["1", "2", "3", "4"] {
            assert!(
                logits(reference, &["--embedded", nodes]) == direct,
                "{} on {nodes} nodes",
                reference.0
            );
        }
    }
    let reference = Reference("tiny-w");
    let direct = logits(reference, &["--embedded", "0"]);
    for (nodes, grid) in [
        ("2", "2x1"),
        ("4", "4x1"),
        ("4", "2x2"),
        ("3", "1x3"),
        ("5", "4x8"),
    ] {
        let found = logits(
            reference,
            &["--embedded", nodes, "--grid", grid, "--chunk", "19"],
        );
        assert!(found == direct, "{nodes} nodes, grid {grid}");
    }
}

#[test]
fn node_processes_compute_all_experts_and_change_no_bit() {
    let reference = Reference("tiny-w");
    let hp = hyper_params(reference);
    // Uneven shares, and kernels of different instruction sets in one cluster.
    let nodes = [
        node(reference, &["--tiles", "blocks=0..3", "--isa", "scalar"]),
        node(reference, &["--tiles", "blocks=3..4"]),
        node(
            reference,
            &["--tiles", "experts=0..1,blocks=4..8", "--isa", "scalar"],
        ),
        node(reference, &["--tiles", "experts=1..4,blocks=4..8"]),
    ];
    let names: Vec<&str> = nodes.iter().map(|(_, address)| address.as_str()).collect();
    let direct = logits(reference, &["--embedded", "0"]);
    let found = logits(reference, &["--nodes", &names.join(",")]);
    assert!(found == direct);
    let computed: Vec<u64> = names
        .iter()
        .map(|name| counters(name).expert_blocks)
        .collect();
    let tokens = reference.tokens("rand").expect("tokens").len() as u64;
    let blocks = hp.expert_width.div_ceil(256) as u64;
    let all = tokens * hp.layers as u64 * hp.experts_used as u64 * blocks;
    // Each node's known calls are a block each, in different layers.
    let known = hp.layers.min(4) as u64;
    let sum = all + known * names.len() as u64;
    assert_eq!(computed.iter().sum::<u64>(), sum, "{computed:?}");
    assert!(
        computed.iter().all(|&blocks| blocks > known),
        "{computed:?}"
    );
}

#[test]
fn missing_tiles_are_named() {
    let reference = Reference("tiny-w");
    let (_node, address) = node(reference, &["--tiles", "blocks=0..5"]);
    let tokens = reference.folder().join("rand.tokens.json");
    let (model, tokens) = (reference.model(), tokens);
    let args = [
        "logits",
        "--log=off",
        "-m",
        model.to_str().expect("utf-8"),
        "--tokens",
        tokens.to_str().expect("utf-8"),
        "--out=/dev/null",
        "--nodes",
        &address,
    ];
    let output = run(COORD, &args).expect("run");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains("5..8"), "{error}");
}

#[test]
fn a_node_of_another_model_is_refused_with_both_fingerprints() {
    let (_node, address) = node(Reference("tiny-a"), &[]);
    let reference = Reference("tiny-b");
    let tokens = reference.folder().join("rand.tokens.json");
    let args = [
        "logits",
        "--log=off",
        "--tokens",
        tokens.to_str().expect("utf-8"),
        "--out=/dev/null",
        "--nodes",
        &address,
    ];
    let output = run(COORD, &args).expect("run");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(
        error.contains(&address) && error.contains("does not fit"),
        "{error}"
    );
}

/// The response to a greedy completion.
fn complete(url: &str) -> anyhow::Result<serde_json::Value> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let body = serde_json::json!({
            "prompt": "Some text that the model reads before it goes on",
            "max_tokens": 24,
            "temperature": 0,
            "ignore_eos": true,
        });
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(60))
            .build()?;
        let reply = client
            .post(format!("{url}/v1/completions"))
            .json(&body)
            .send()
            .await?;
        Ok(reply.error_for_status()?.json().await?)
    })
}

fn text(reply: &serde_json::Value) -> &str {
    reply["choices"][0]["text"].as_str().expect("text")
}

/// Makes a copy that the page cache holds in the smallest pages: a huge page would be mapped, and
/// count as resident, as soon as one of its bytes is touched.
fn copy_in_small_pages(from: &Path, to: &Path) -> std::io::Result<()> {
    let bytes = std::fs::read(from)?;
    let mut file = std::fs::File::create(to)?;
    bytes.chunks(4096).try_for_each(|page| file.write_all(page))
}

#[test]
fn a_coordinator_of_nodes_touches_no_expert_page_but_those_of_known_calls() {
    let folder = TempDir::new().expect("folder");
    let model = folder.path().join("model.gguf");
    copy_in_small_pages(&Reference("tiny-w").model(), &model).expect("copy");
    let model_flag = model.to_str().expect("utf-8");
    let (_node, address) = start_node(&["-m", model_flag, "--listen", "127.0.0.1:0"]);
    let args = [
        "serve",
        "-m",
        model_flag,
        "--listen=127.0.0.1:0",
        "--audit=off",
        "--nodes",
        &address,
    ];
    let mut coordinator = Server::start(COORD, &args).expect("coordinator");
    complete(&coordinator.ready).expect("completion");
    let resident = resident_kilobytes(coordinator.id(), &model).expect("smaps");
    let gguf = GgufModel::open(&model).expect("model");
    let is_expert = |name: &str| name.contains("_exps");
    let experts: Vec<u64> = gguf
        .tensors()
        .iter()
        .filter(|t| is_expert(&t.name))
        .map(|t| t.bytes)
        .collect();
    let others: u64 = gguf
        .tensors()
        .iter()
        .filter(|t| !is_expert(&t.name))
        .map(|t| t.bytes)
        .sum();
    // The kernel maps up to 64 KiB around a touched page, so a tensor's neighbours bring in some
    // of its edges.
    let edges = 128 * experts.len() as u64;
    // The known calls touch one expert of each of four layers: a block of gate and of up, and every
    // page of down.
    let hp = hyper_params(Reference("tiny-w"));
    let one = experts.iter().max().expect("experts") / hp.experts as u64;
    let known = hp.layers.min(4) as u64 * (3 * one / 1024 + 3 * 128);
    let allowed = others / 1024 + edges + known + 64;
    assert!(
        resident <= allowed,
        "{resident} kB resident, {allowed} kB allowed"
    );
    assert!(
        allowed < gguf.file_bytes() / 1024,
        "the bound could not fail"
    );
    assert!(coordinator.stop().expect("stop").success());
}

#[test]
fn a_restarted_node_is_used_again() {
    let reference = Reference("tiny-b");
    let (mut first, address) = node(reference, &[]);
    // Without the local fallback the coordinator has to wait for the node.
    let args = [
        "serve",
        "--listen=127.0.0.1:0",
        "--local-fallback=never",
        "--nodes",
        &address,
    ];
    let mut coordinator = Server::start(COORD, &args).expect("coordinator");
    let before = complete(&coordinator.ready).expect("completion");
    assert!(first.stop().expect("drain").success());
    let (mut second, _) = node_at(reference, &address, &[]);
    let after = complete(&coordinator.ready).expect("completion after the restart");
    assert_eq!(text(&after), text(&before));
    assert!(counters(&address).expert_blocks > 0);
    assert!(coordinator.stop().expect("stop").success());
    assert!(second.stop().expect("drain").success());
}

/// Requests completions one after the other while `disturb` runs; each must be `expected`.
fn complete_while(url: &str, expected: &str, disturb: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let disturbance = scope.spawn(disturb);
        let mut rounds = 0;
        while !disturbance.is_finished() || rounds < 3 {
            let reply = complete(url).expect("a completion in spite of lost nodes");
            assert_eq!(text(&reply), expected, "round {rounds}");
            rounds += 1;
        }
        disturbance.join().expect("disturbance");
    });
}

fn metrics(url: &str) -> String {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let get = async { reqwest::get(format!("{url}/metrics")).await?.text().await };
    runtime.block_on(get).expect("metrics")
}

/// The sum of a counter's series.
fn counted(metrics: &str, name: &str) -> f64 {
    let of_series = |line: &str| -> Option<f64> {
        let rest = line.strip_prefix(name)?;
        (rest.starts_with(['{', ' '])).then(|| rest.rsplit(' ').next()?.parse().ok())?
    };
    metrics.lines().filter_map(of_series).sum()
}

#[test]
fn nodes_that_die_stop_and_return_change_no_token_of_two_coordinators() {
    let reference = Reference("tiny-b");
    let model = reference.model();
    let model = model.to_str().expect("utf-8");
    let direct = Server::start(
        COORD,
        &["serve", "-m", model, "--listen=127.0.0.1:0", "--embedded=0"],
    );
    let direct = direct.expect("serve in process");
    let expected = text(&complete(&direct.ready).expect("completion")).to_owned();
    let (mut first, first_address) = node(reference, &[]);
    let (second, second_address) = node(reference, &[]);
    let names = format!("{first_address},{second_address}");
    let args = [
        "serve",
        "-m",
        model,
        "--listen=127.0.0.1:0",
        "--local-fallback=never",
        "--nodes",
        &names,
    ];
    let coordinators = [(); 2].map(|()| Server::start(COORD, &args).expect("coordinator"));
    let url = |i: usize| coordinators[i].ready.as_str();
    let pause = || std::thread::sleep(Duration::from_millis(300));
    let mut disturb = || {
        pause();
        first.signal("KILL").expect("kill");
        first.wait().expect("dead");
        pause();
        let (returned, _) = node_at(reference, &first_address, &[]);
        let work = || counters(&first_address).expert_blocks;
        while work() == 0 {
            pause();
        }
        second.signal("STOP").expect("stop");
        pause();
        second.signal("CONT").expect("continue");
        pause();
        returned
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            complete_while(url(1), &expected, || {
                std::thread::sleep(Duration::from_secs(3))
            })
        });
        complete_while(url(0), &expected, || drop(disturb()));
    });
}

#[test]
fn with_no_node_left_the_local_fallback_takes_over_and_is_counted() {
    let reference = Reference("tiny-b");
    let (mut only, address) = node(reference, &[]);
    let args = ["serve", "--listen=127.0.0.1:0", "--nodes", &address];
    let coordinator = Server::start(COORD, &args).expect("coordinator");
    let url = coordinator.ready.clone();
    let before = complete(&url).expect("completion");
    assert!(counted(&metrics(&url), "ds4_fallback_pieces_total") == 0.0);
    only.signal("KILL").expect("kill");
    only.wait().expect("dead");
    let after = complete(&url).expect("completion without a node");
    assert_eq!(text(&after), text(&before));
    assert!(counted(&metrics(&url), "ds4_fallback_pieces_total") > 0.0);
}

#[test]
fn the_default_model_is_served_without_flags() {
    let mut coordinator = Server::start(COORD, &["serve", "--listen=127.0.0.1:0"]).expect("serve");
    assert!(
        coordinator.ready.starts_with("http://127.0.0.1:"),
        "{}",
        coordinator.ready
    );
    let reply = complete(&coordinator.ready).expect("completion");
    assert_eq!(reply["usage"]["completion_tokens"], 24);
    let direct = Server::start(COORD, &["serve", "--listen=127.0.0.1:0", "--embedded=0"]);
    let direct = direct.expect("serve in process");
    assert_eq!(
        text(&complete(&direct.ready).expect("completion")),
        text(&reply)
    );
    assert!(coordinator.stop().expect("stop").success());
}
