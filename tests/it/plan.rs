//! From a plan to a cluster that follows it, with the real binaries.

use std::path::Path;

use ds4_tests::golden::Reference;
use ds4_tests::process::run;
use tempfile::TempDir;

use crate::cluster::{COORD, logits, start_node};

const MODEL: Reference = Reference("tiny-w");

/// Runs `ds4-coord` and returns what it prints.
fn coord(args: &[&str]) -> String {
    let output = run(COORD, &[args, &["--log", "error"]].concat()).expect("run");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

/// Plans for the nodes, cuts slices by the plan and starts the nodes with them.
fn follow(folder: &Path, nodes: &[&str], replicas: &str) -> Vec<ds4_tests::process::Server> {
    let model = MODEL.model();
    let plan = folder.join("plan.toml");
    let mut args = vec!["plan", "-m", text(&model), "--out", text(&plan)];
    args.extend(["--replicas", replicas]);
    for node in nodes {
        args.extend(["--node", node]);
    }
    let said = coord(&args);
    assert!(
        said.contains("tokens/s") && said.contains("slices"),
        "{said}"
    );
    let cut = [
        "slice",
        "-m",
        text(&model),
        "--plan",
        text(&plan),
        "--out",
        text(folder),
    ];
    coord(&cut);
    let direct = logits(MODEL, &["--embedded", "0"]);
    let mut servers = Vec::new();
    let mut addresses = Vec::new();
    for node in nodes {
        let name = node.split(['=', ',']).nth(1).expect("a name");
        let file = folder.join(format!("{name}.gguf"));
        let (server, address) = start_node(&["--slice", text(&file), "--listen=127.0.0.1:0"]);
        servers.push(server);
        addresses.push(address);
    }
    assert!(logits(MODEL, &["--nodes", &addresses.join(",")]) == direct);
    if replicas != "0" {
        // Every tile has a replica, so any one node may be absent from the start.
        let fewer = addresses[1..].join(",");
        assert!(logits(MODEL, &["--nodes", &fewer]) == direct);
    }
    servers
}

#[test]
fn uneven_nodes_that_follow_a_plan_change_no_bit() {
    let folder = TempDir::new().expect("folder");
    let nodes = [
        "name=slow,memory=2G,bandwidth=10G",
        "name=quick,memory=2G,bandwidth=30G",
        "name=third,memory=2G,bandwidth=20G",
    ];
    follow(folder.path(), &nodes, "0");
}

#[test]
fn a_plan_with_replicas_works_without_any_one_node() {
    let folder = TempDir::new().expect("folder");
    let nodes = ["name=a,memory=2G", "name=b,memory=3G", "name=c,memory=2G"];
    follow(folder.path(), &nodes, "1");
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_advice() {
    let model = MODEL.model();
    let args = [
        "plan",
        "-m",
        text(&model),
        "--node",
        "name=a,memory=2M",
        "--reserve",
        "1M",
    ];
    let output = run(COORD, &args).expect("run");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("MB short") || error.contains("GB short"),
        "{error}"
    );
    assert!(error.contains("it would fit with"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}
