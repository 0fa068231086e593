//! Files that are damaged, cut or written to, before and while the real binaries use them: no wrong
//! number gets out, and the file is named.

use std::fs::{File, FileTimes, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use ds4_common::slice::Slice;
use ds4_proto::pb::DescribeRequest;
use ds4_proto::pb::node_control_client::NodeControlClient;
use ds4_tests::golden::Reference;
use ds4_tests::process::{Server, TIMEOUT, run};
use tempfile::TempDir;
use tonic::transport::Endpoint;

use crate::cluster::{COORD, logits, start_node};

const MODEL: Reference = Reference("tiny-w");

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

/// Two slices of half the experts each, and a copy of the second.
fn slices() -> (TempDir, [PathBuf; 3]) {
    let folder = TempDir::new().expect("folder");
    let model = MODEL.model();
    let args = ["slice", "-m", text(&model), "--nodes=2", "--log=error"];
    let out = ["--out", text(folder.path())];
    let output = run(COORD, &[&args[..], &out].concat()).expect("run");
    assert!(output.status.success(), "{output:?}");
    let [first, second, copy] =
        ["node-0.gguf", "node-1.gguf", "copy.gguf"].map(|name| folder.path().join(name));
    std::fs::copy(&second, &copy).expect("copied");
    (folder, [first, second, copy])
}

/// Writes to a byte of a tensor in place; returns the tensor's name and layer.
fn flip(path: &Path, tensor: usize) -> (String, usize) {
    let slice = Slice::open(path).expect("slice");
    let victim = &slice.head().tensors()[tensor];
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.expect("open");
    // In the middle: a byte of some block, of some expert.
    let at = victim.offset + victim.bytes / 2 + 16;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 0x7f], at).expect("written");
    (victim.name.clone(), victim.layer)
}

/// Why the node is out of service; empty if it is not.
fn out_of_service(address: &str) -> String {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let describe = async {
        let channel = Endpoint::from_shared(format!("http://{address}"))?
            .connect()
            .await?;
        let mut client = NodeControlClient::new(channel);
        let reply = client.describe(DescribeRequest::default()).await?;
        anyhow::Ok(reply.into_inner().out_of_service)
    };
    runtime.block_on(describe).expect("a description")
}

/// Waits until what a node says of its service fits.
fn wait_for(address: &str, fits: impl Fn(&str) -> bool) -> String {
    let start = Instant::now();
    loop {
        let said = out_of_service(address);
        if fits(&said) {
            return said;
        }
        assert!(start.elapsed() < TIMEOUT, "{said}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn serve_slice(file: &Path, more: &[&str]) -> (Server, String) {
    start_node(&[&["--slice", text(file), "--listen=127.0.0.1:0"], more].concat())
}

#[test]
fn a_damaged_slice_changes_no_bit_and_takes_its_node_out_of_service() {
    let (_folder, [first, second, copy]) = slices();
    let (damaged, _) = flip(&second, 4);
    let direct = logits(MODEL, &["--embedded", "0"]);
    let nodes = [&first, &second, &copy].map(|file| serve_slice(file, &[]));
    let names: Vec<&str> = nodes.iter().map(|(_, address)| address.as_str()).collect();
    assert!(logits(MODEL, &["--nodes", &names.join(",")]) == direct);
    let said = wait_for(names[1], |said| !said.is_empty());
    assert!(
        said.contains(&damaged) && said.contains("node-1.gguf"),
        "{said}"
    );
    assert_eq!(out_of_service(names[2]), "");
    // Without a replica, the coordinator's own file stands in, also at the start.
    let two = names[..2].join(",");
    assert!(logits(MODEL, &["--nodes", &two]) == direct);
}

#[test]
fn a_slice_that_is_written_to_or_cut_while_it_is_served_changes_no_bit() {
    let (_folder, [first, second, copy]) = slices();
    let direct = logits(MODEL, &["--embedded", "0"]);
    let nodes = [&first, &second, &copy].map(|file| serve_slice(file, &[]));
    let names: Vec<&str> = nodes.iter().map(|(_, address)| address.as_str()).collect();
    let all = names.join(",");
    assert!(logits(MODEL, &["--nodes", &all]) == direct);
    // At once: before the node has looked at its file.
    flip(&second, 4);
    assert!(logits(MODEL, &["--nodes", &all]) == direct);
    let said = wait_for(names[1], |said| !said.is_empty());
    assert!(said.contains("node-1.gguf"), "{said}");
    // Repaired in place, it serves again.
    flip(&second, 4);
    wait_for(names[1], str::is_empty);
    let length = std::fs::metadata(&second).expect("file").len();
    let file = OpenOptions::new().write(true).open(&second).expect("open");
    file.set_len(length / 2).expect("cut");
    let said = wait_for(names[1], |said| !said.is_empty());
    assert!(said.contains("truncated"), "{said}");
    assert!(logits(MODEL, &["--nodes", &all]) == direct);
}

/// A copy of the model that was last written some time ago.
fn own_copy(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("own.gguf");
    std::fs::copy(MODEL.model(), &path).expect("copied");
    let past = SystemTime::now() - Duration::from_secs(9);
    let file = File::options().write(true).open(&path).expect("open");
    file.set_times(FileTimes::new().set_modified(past))
        .expect("times");
    path
}

/// Serves `model`; standard error goes to the file that is returned.
fn coordinator(model: &Path, folder: &TempDir) -> (Server, PathBuf) {
    let log = folder.path().join("coord.log");
    let mut command = Command::new(COORD);
    command
        .args(["serve", "-m", text(model), "--embedded=0", "--threads=1"])
        .args(["--listen=127.0.0.1:0", "--kv-memory=64MiB"])
        .stderr(File::create(&log).expect("log"));
    (Server::launch(command).expect("coordinator"), log)
}

fn ask(server: &Server) -> Option<String> {
    let client = reqwest::blocking::Client::new();
    let request = serde_json::json!({
        "prompt": "the", "max_tokens": 8, "temperature": 0, "stream": false
    });
    let url = format!("{}/v1/completions", server.ready);
    let reply = client.post(url).json(&request).send().ok()?;
    let reply = reply.error_for_status().ok()?.json::<serde_json::Value>();
    Some(reply.ok()?["choices"][0]["text"].as_str()?.to_owned())
}

#[test]
fn a_coordinator_whose_model_is_cut_says_so_in_its_last_line() {
    let folder = TempDir::new().expect("folder");
    let model = own_copy(&folder);
    let (mut server, log) = coordinator(&model, &folder);
    assert!(ask(&server).is_some());
    let file = OpenOptions::new().write(true).open(&model).expect("open");
    file.set_len(100_000).expect("cut");
    assert_eq!(ask(&server), None);
    let status = server.wait().expect("it ends by itself");
    assert_eq!(status.code(), Some(1), "{status}");
    let log = std::fs::read_to_string(log).expect("log");
    let last = log.lines().last().unwrap_or_default();
    assert!(
        last.contains("own.gguf") && last.contains("truncated"),
        "{log}"
    );
}

#[test]
fn a_coordinator_whose_model_is_written_to_answers_nothing_more() {
    let folder = TempDir::new().expect("folder");
    let model = own_copy(&folder);
    let (mut server, log) = coordinator(&model, &folder);
    assert!(ask(&server).is_some());
    let length = std::fs::metadata(&model).expect("file").len();
    let file = OpenOptions::new().write(true).open(&model).expect("open");
    file.write_all_at(&[0x55; 4096], length - 4096)
        .expect("written");
    assert_eq!(ask(&server), None);
    let status = server.wait().expect("it ends by itself");
    assert_eq!(status.code(), Some(1), "{status}");
    let log = std::fs::read_to_string(log).expect("log");
    let last = log.lines().last().unwrap_or_default();
    assert!(
        last.contains("own.gguf") && last.contains("written to"),
        "{log}"
    );
}
