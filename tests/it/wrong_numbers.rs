//! Wrong numbers with the real binaries: bits that flip between a node and the coordinator, and a
//! slice that is damaged on its disk. The logits stay the same, and the log names the node.

use std::net::SocketAddr;
use std::path::Path;

use ds4_common::slice::Slice;
use ds4_tests::golden::Reference;
use ds4_tests::namespace::Namespace;
use ds4_tests::process::run;
use ds4_tests::relay::{Conditions, Relay};
use tempfile::TempDir;

use crate::cluster::{COORD, logits, node, start_node};

const MODEL: Reference = Reference("tiny-w");

/// The logits that a coordinator of `nodes` computes, and its log.
fn logits_and_log(nodes: &[&str], args: &[&str]) -> (Vec<u8>, String) {
    let folder = TempDir::new().expect("folder");
    let out = folder.path().join("logits.npy");
    let tokens = MODEL.folder().join("rand.tokens.json");
    let model = MODEL.model();
    let [model, tokens, file] = [&model, &tokens, &out].map(|p| p.to_str().expect("utf-8"));
    let nodes = nodes.join(",");
    let fixed = [
        "logits",
        "-m",
        model,
        "--tokens",
        tokens,
        "--out",
        file,
        "--nodes",
        &nodes,
        "--chunk=1",
    ];
    let output = run(COORD, &[&fixed[..], args].concat()).expect("run");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    (std::fs::read(&out).expect("logits"), log)
}

#[test]
fn bits_that_flip_on_the_line_change_no_logit_and_name_the_node() {
    let direct = logits(MODEL, &["--embedded", "0", "--chunk=1"]);
    let nodes = [node(MODEL, &[]), node(MODEL, &[])];
    let target: SocketAddr = nodes[0].1.parse().expect("address");
    let any = "127.0.0.1:0".parse().expect("address");
    let flips = Conditions {
        flips: 0.1,
        ..Conditions::default()
    };
    let relay = Relay::start(&Namespace::Current, any, target, flips, 3).expect("relay");
    let damaged = relay.address().to_string();
    let (found, log) = logits_and_log(&[&damaged, &nodes[1].1], &[]);
    assert!(found == direct, "logits differ");
    assert!(relay.flipped() > 0, "nothing was flipped");
    assert!(log.contains(&damaged), "{log}");
}

/// Flips the lowest bit of every 97th byte of a slice's tensors.
fn damage(slice: &Path) {
    let first = {
        let slice = Slice::open(slice).expect("slice");
        slice.head().tensors()[0].offset as usize
    };
    let mut bytes = std::fs::read(slice).expect("read");
    bytes[first..]
        .iter_mut()
        .step_by(97)
        .for_each(|byte| *byte ^= 1);
    std::fs::write(slice, bytes).expect("written");
}

#[test]
fn a_damaged_slice_changes_no_logit_and_its_node_is_named() {
    let direct = logits(MODEL, &["--embedded", "0", "--chunk=1"]);
    let folder = TempDir::new().expect("folder");
    let model = MODEL.model();
    let [model, out] = [model.as_path(), folder.path()].map(|p| p.to_str().expect("utf-8"));
    let cut = ["slice", "-m", model, "--out", out, "--nodes", "1"];
    assert!(run(COORD, &cut).expect("run").status.success());
    let slice = folder.path().join("node-0.gguf");
    damage(&slice);
    let slice = slice.to_str().expect("utf-8");
    let (_damaged, damaged) = start_node(&["--slice", slice, "--listen=127.0.0.1:0"]);
    let (_whole, whole) = node(MODEL, &[]);
    let (found, log) = logits_and_log(&[&damaged, &whole], &["--audit=1"]);
    assert!(found == direct, "logits differ");
    assert!(log.contains(&damaged), "{log}");
}
