//! Invalid tokens, flags and nodes on the command line.

use std::time::{Duration, Instant};

use crate::bad_input::{MODEL, Outcome, TestFolder, assert_refused, coord, text};

#[test]
fn token_files_that_are_wrong() {
    let dir = TestFolder::new();
    let cases: [(&str, &[&str]); 12] = [
        ("", &["ids.json"]),
        ("{}", &["list of token ids"]),
        ("7", &["list of token ids"]),
        ("[1, \"two\"]", &["list of token ids"]),
        ("[1, -2]", &["list of token ids", "-2"]),
        ("[1.5]", &["list of token ids", "1.5"]),
        ("[1, 2", &["list of token ids"]),
        ("[[1], [2]]", &["list of token ids"]),
        ("[null]", &["list of token ids"]),
        ("[4294967296]", &["list of token ids", "4294967296"]),
        ("[]", &["no tokens"]),
        ("[3, 512]", &["512", "index 1", "vocabulary of 512"]),
    ];
    for (tokens, parts) in cases {
        dir.assert_logits_refused(tokens, &[], &[parts, &["ids.json"]].concat());
    }
    let nine = "[1,2,3,4,5,6,7,8,9]";
    dir.assert_logits_refused(nine, &["--context", "8"], &["9 tokens", "context of 8"]);
    let args = [
        "logits",
        "--log",
        "off",
        "--out",
        "x.npy",
        "--tokens",
        "/nowhere/ids.json",
    ];
    assert_refused(&args, &["/nowhere/ids.json", "No such file"]);
    let binary = dir.file("ids.bin", [0xff, 0xfe, 0x00]);
    let args = [
        "logits",
        "--log",
        "off",
        "--out",
        "x.npy",
        "--tokens",
        text(&binary),
    ];
    assert_refused(&args, &["ids.bin", "UTF-8"]);
}

#[test]
fn flags_that_cannot_be_satisfied() {
    let dir = TestFolder::new();
    dir.assert_logits_refused("[1]", &["--grid", "3x9"], &["3"]);
    let inspected = coord(&["inspect", "--log", "off", "-m", text(&MODEL.model())]).stdout;
    let limit = inspected.split_once("context ").expect("a context").1;
    let limit = limit.lines().next().expect("a number");
    dir.assert_logits_refused(
        "[1]",
        &["--context", "5000000"],
        &["--context", "5000000", limit],
    );
    let tokens = dir.file("ids.json", "[1]");
    let model = MODEL.model();
    let always = [
        "logits",
        "--log",
        "off",
        "-m",
        text(&model),
        "--tokens",
        text(&tokens),
    ];
    for out in ["/nowhere/out.npy", text(dir.0.path())] {
        assert_refused(&[&always[..], &["--out", out]].concat(), &[out]);
        // Reported before the model is opened.
        let no_model = ["-m", "/nowhere.gguf", "--out", out];
        assert_refused(
            &[&["logits", "--tokens", text(&tokens)], &no_model[..]].concat(),
            &[out],
        );
    }
    assert_refused(
        &[&always[..], &["--out", "/dev/full"]].concat(),
        &["/dev/full", "space"],
    );
}

/// Malformed flags end with the parser's exit code and without a panic.
#[test]
fn flags_that_are_malformed() {
    let cases: [&[&str]; 12] = [
        &["logits"],
        &["logits", "--tokens"],
        &["inspect", "--threads", "-1"],
        &["inspect", "--threads", "many"],
        &["inspect", "--numerics", "f64"],
        &["inspect", "--grid", "0x0"],
        &["inspect", "--wait-for-nodes", "-3"],
        &["inspect", "--log", "=[=,"],
        &["serve", "--kv-memory", "much"],
        &["serve", "--body-limit=-1MiB"],
        &["plan", "--reserve", "1.5.2G"],
        &["nothing"],
    ];
    for args in cases {
        let Outcome { code, stderr, .. } = coord(args);
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: "), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    }
    let Outcome { code, stderr, .. } = coord(&["inspect", "--isa", "mmx"]);
    assert_eq!(code, Some(2), "{stderr}");
    for part in ["--isa", "mmx", "scalar"] {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
}

/// Malformed addresses are refused at once, without waiting for nodes.
#[test]
fn malformed_addresses() {
    for address in ["", "no port", "http://a b", ":1", "host:99999", "http://"] {
        let start = Instant::now();
        let flags = ["bench", "--nodes", address, "--wait-for-nodes", "60"];
        let Outcome { code, stderr, .. } = coord(&flags);
        assert_eq!(code, Some(2), "{address:?}: {stderr}");
        assert!(stderr.contains("--nodes"), "{address:?}: {stderr}");
        assert!(stderr.contains(address), "{address:?}: {stderr}");
        assert!(start.elapsed() < Duration::from_secs(30), "{address:?}");
    }
}

#[test]
fn nodes_that_cannot_be_reached() {
    let dir = TestFolder::new();
    // A port at which nothing listens, and one at which nothing answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let [silent_at, free_at] = [&silent, &free].map(|l| l.local_addr().expect("bound").to_string());
    drop(free);
    for node in [
        silent_at.as_str(),
        free_at.as_str(),
        "no-such-host.invalid:9",
    ] {
        let start = Instant::now();
        let flags = ["--insecure", "--nodes", node, "--wait-for-nodes", "1"];
        dir.assert_logits_refused("[1]", &flags, &[node, "1 s"]);
        assert!(start.elapsed() < Duration::from_secs(8), "{node}");
    }
    let twice = format!("{free_at},{free_at}");
    let flags = ["--nodes", twice.as_str(), "--wait-for-nodes", "1"];
    dir.assert_logits_refused("[1]", &flags, &[&free_at, "twice"]);
}

/// The message names the flag and what it takes.
#[test]
fn flags_whose_message_says_what_to_write() {
    let cases: [(&[&str], &[&str]); 4] = [
        (&["inspect", "--isa", "mmx"], &["--isa", "mmx", "scalar"]),
        (
            &["serve", "--kv-memory", "64"],
            &["--kv-memory", "invalid memory size \"64\": write a unit"],
        ),
        (
            &["plan", "--node", "name=a,memory=64"],
            &["--node", "write a unit, for example 64GiB"],
        ),
        (
            &["serve", "--keep-alive", "0"],
            &["--keep-alive", "1..=86400"],
        ),
    ];
    for (args, parts) in cases {
        let Outcome { code, stderr, .. } = coord(args);
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{args:?}: no {part:?} in {stderr}");
        }
    }
}
