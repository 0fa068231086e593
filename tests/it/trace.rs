//! `ds4-coord trace`: the same lines wherever the experts are computed, and the place of a fault.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ds4_common::slice::{Projection, Slice};
use ds4_tests::golden::Reference;
use ds4_tests::process::run;
use tempfile::TempDir;

use crate::cluster::{COORD, start_node};

const MODEL: Reference = Reference("tiny-w");

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

/// Exit code and both outputs of `ds4-coord trace` of the model's `rand` tokens.
fn trace(model: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let tokens = MODEL.folder().join("rand.tokens.json");
    let all = [
        "trace",
        "-m",
        text(model),
        "--tokens",
        text(&tokens),
        "--log=error",
    ];
    let output = run(COORD, &[&all[..], args].concat()).expect("run");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn a_trace_is_the_same_wherever_the_experts_are_computed() {
    let model = MODEL.model();
    let (code, direct, error) = trace(&model, &["--embedded=0", "--isa=scalar"]);
    assert_eq!(code, Some(0), "{error}");
    for place in ["--embedded=0", "--embedded=1", "--embedded=2"] {
        let (code, found, error) = trace(&model, &[place]);
        assert_eq!(code, Some(0), "{error}");
        assert!(found == direct, "{place}:\n{found}\nwas\n{direct}");
    }
    for line in [
        "position ",
        "embedding",
        "router.logits",
        "route[0]",
        "experts.routed",
        "logits",
    ] {
        assert!(direct.contains(line), "{line}: {direct}");
    }
    let (_, earlier, _) = trace(&model, &["--embedded=0", "--position=3", "--values"]);
    assert!(earlier.starts_with("position 3 token "), "{earlier}");
    let (code, json, _) = trace(&model, &["--embedded=0", "--format=json"]);
    assert_eq!(code, Some(0));
    assert_eq!(json.lines().count(), direct.lines().count());
    assert!(
        json.lines()
            .all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
    );
    let (code, _, error) = trace(&model, &["--embedded=0", "--position=100000"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("--position 100000 is beyond"), "{error}");
}

/// A slice of the whole model in which the gate of an expert is another one in its first rows.
fn with_wrong_expert(folder: &TempDir, layer: usize, expert: u64) -> PathBuf {
    let model = MODEL.model();
    let args = [
        "slice",
        "-m",
        text(&model),
        "--nodes=1",
        "--layout=plain",
        "--log=error",
    ];
    let output = run(
        COORD,
        &[&args[..], &["--out", text(folder.path())]].concat(),
    )
    .expect("run");
    assert!(output.status.success(), "{output:?}");
    let path = folder.path().join("node-0.gguf");
    let slice = Slice::open(&path).expect("slice");
    let mut tensors = slice.head().tensors().iter();
    let gate = tensors.find(|t| t.layer == layer && t.projection == Projection::Gate);
    let gate = gate.expect("a gate");
    let [_, rows, experts] = gate.dims;
    let (each, row) = (gate.bytes / experts, gate.bytes / experts / rows);
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.expect("open");
    for row in (0..32).map(|i| gate.offset + expert * each + i * row) {
        // The quants of the row's first block, behind its scales.
        let mut quants = [0; 128];
        file.read_exact_at(&mut quants, row + 16).expect("read");
        let wrong = quants.map(|byte| byte ^ 0x77);
        file.write_all_at(&wrong, row + 16).expect("written");
    }
    path
}

#[test]
fn a_planted_wrong_expert_is_found_by_the_trace_and_by_the_expert_alone() {
    let (_, direct, _) = trace(&MODEL.model(), &["--embedded=0"]);
    let routes = direct.lines().filter(|line| line.contains("route[0]"));
    let second = routes.clone().nth(1).expect("a route of layer 1");
    let words: Vec<&str> = second.split_whitespace().collect();
    let (layer, expert) = (
        words[0].parse().expect("layer"),
        words[3].parse().expect("expert"),
    );
    let folder = TempDir::new().expect("folder");
    let wrong = with_wrong_expert(&folder, layer, expert);
    let args = [
        "--slice",
        text(&wrong),
        "--verify=off",
        "--listen=127.0.0.1:0",
    ];
    let (_node, address) = start_node(&args);

    let (code, found, error) = trace(&MODEL.model(), &["--nodes", &address]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains(&format!("layer {layer}: ")), "{error}");
    let first = found.lines().zip(direct.lines()).find(|(a, b)| a != b);
    let first = first.expect("a difference").0;
    assert!(
        first
            .trim_start()
            .starts_with(&format!("{layer} experts.routed")),
        "{first}"
    );

    let name = format!("{layer}:{expert}");
    let (code, table, error) = trace(&MODEL.model(), &["--nodes", &address, "--expert", &name]);
    assert_eq!(code, Some(1), "{table}{error}");
    assert!(
        error.contains(&format!("node {address} (block 0)")),
        "{error}"
    );
    assert!(table.contains("DIFFERS in block 0"), "{table}");
    let scalar = table.lines().find(|line| line.starts_with("scalar"));
    assert!(scalar.is_some_and(|line| line.ends_with("same")), "{table}");

    // Another expert of the same layer is the same everywhere.
    let other = format!("{layer}:{}", expert ^ 1);
    let (code, table, error) = trace(&MODEL.model(), &["--nodes", &address, "--expert", &other]);
    assert_eq!(code, Some(0), "{table}{error}");
    let (code, _, error) = trace(&MODEL.model(), &["--embedded=1", "--expert=99:0"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("layer 99 does not exist"), "{error}");
}
