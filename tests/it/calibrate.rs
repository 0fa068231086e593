//! `ds4-coord calibrate` with real nodes.

use ds4_tests::golden::Reference;
use ds4_tests::process::run;
use tempfile::TempDir;

use crate::cluster::{COORD, logits, start_node};

const MODEL: Reference = Reference("tiny-w");

#[test]
fn running_nodes_are_measured_into_a_file() {
    let model = MODEL.model();
    let model = model.to_str().expect("utf-8");
    let args = ["-m", model, "--listen=127.0.0.1:0", "--threads=1"];
    let (_one, one) = start_node(&args);
    let (_two, two) = start_node(&args);
    let folder = TempDir::new().expect("folder");
    let out = folder.path().join("cluster.toml");
    let nodes = format!("{one},{two}");
    let path = out.to_str().expect("utf-8");
    let output = run(COORD, &["calibrate", "--nodes", &nodes, "--out", path]).expect("run");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains(&one) && table.contains(&two), "{table}");
    let file = std::fs::read_to_string(&out).expect("the file");
    for (part, count) in [
        ("[coordinator]", 1),
        ("[[node]]", 2),
        ("bandwidth = ", 3),
        ("link = ", 3),
        ("rtt = ", 2),
        ("address = \"127.0.0.1:", 2),
    ] {
        assert_eq!(file.matches(part).count(), count, "{part} in {file}");
    }
    let direct = logits(MODEL, &["--embedded", "0"]);
    assert!(logits(MODEL, &["--nodes", &nodes]) == direct);
}

#[test]
fn an_unreachable_node_fails_the_command_but_not_the_other_rows() {
    let model = MODEL.model();
    let model = model.to_str().expect("utf-8");
    let (_one, one) = start_node(&["-m", model, "--listen=127.0.0.1:0", "--threads=1"]);
    let gone = {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
        closed.local_addr().expect("address").to_string()
    };
    let nodes = format!("{gone},{one}");
    let output = run(COORD, &["calibrate", "--nodes", &nodes]).expect("run");
    assert_eq!(output.status.code(), Some(1));
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains(&one) && !table.contains(&gone), "{table}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains(&gone), "{error}");
}
