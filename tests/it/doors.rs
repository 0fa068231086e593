//! What clients see of a coordinator that has lost its nodes, or begins without them.

use std::time::{Duration, Instant};

use ds4_tests::golden::ALL;
use ds4_tests::process::{Server, TIMEOUT};
use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};

use crate::cluster::{COORD, node};

fn client() -> Client {
    let client = Client::builder().timeout(Duration::from_secs(120));
    client.build().expect("client")
}

fn get(url: &str, path: &str) -> (u16, Value) {
    let answer = client().get(format!("{url}{path}")).send().expect("answer");
    (answer.status().as_u16(), answer.json().expect("json"))
}

fn complete(url: &str, tokens: usize) -> Response {
    let body = json!({"prompt": "a", "max_tokens": tokens, "ignore_eos": true, "temperature": 0});
    let request = client().post(format!("{url}/v1/completions"));
    request.body(body.to_string()).send().expect("answer")
}

fn wait_for(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn without_nodes_nothing_is_healthy_and_nobody_waits_in_vain() {
    let reference = ALL[0];
    let model = reference.model();
    let (node_process, address) = node(reference, &["--threads=1"]);
    // Far beyond what any wait here may take: nobody may wait for it.
    let args = [
        "serve",
        "-m",
        model.to_str().expect("utf-8"),
        "--listen=127.0.0.1:0",
        "--threads=1",
        "--local-fallback=never",
        "--call-timeout=86400",
        "--max-sequences=1",
        "--nodes",
        &address,
    ];
    let server = Server::start(COORD, &args).expect("coordinator");
    let url = server.ready.as_str();
    assert_eq!(
        get(url, "/ready"),
        (200, json!({"ready": true, "reason": null}))
    );
    assert_eq!(complete(url, 2).status(), 200);
    // One runs, and would wait for a node as long as it may; others wait behind it.
    let ask = |tokens: usize| {
        let url = url.to_owned();
        std::thread::spawn(move || complete(&url, tokens))
    };
    let running = ask(600);
    let load = |key: &str| get(url, "/health").1[key].as_u64();
    wait_for("nothing runs", || load("running") == Some(1));
    let waiting = ask(2);
    wait_for("nothing waits", || load("waiting") == Some(1));
    drop(node_process);
    wait_for("health does not see it", || get(url, "/health").0 == 503);
    let (_, health) = get(url, "/health");
    assert_eq!(health["status"], "no_nodes", "{health}");
    assert_eq!(get(url, "/ready").1["reason"], "no_nodes");
    let refused = |answer: Response| {
        assert_eq!(answer.status(), 503);
        let text = answer.text().expect("text");
        let body: Value = serde_json::from_str(&text).expect("json");
        assert_eq!(body["error"]["code"], "experts_unavailable", "{text}");
        assert!(!text.contains("127.0.0.1"), "an address: {text}");
    };
    refused(waiting.join().expect("a thread"));
    refused(complete(url, 2));
    assert_eq!(load("waiting"), Some(0));
    // The node comes back under its address, and everything goes on.
    let listen = format!("--listen={address}");
    let args = [
        "serve",
        "-m",
        model.to_str().expect("utf-8"),
        &listen,
        "--threads=1",
    ];
    let _node = Server::start(crate::cluster::NODE, &args).expect("node");
    let answer = running.join().expect("a thread");
    assert_eq!(answer.status(), 200, "{:?}", answer.text());
    wait_for("not ready again", || get(url, "/ready").0 == 200);
    assert_eq!(complete(url, 2).status(), 200);
}

#[test]
fn with_its_own_file_a_coordinator_begins_without_nodes() {
    let reference = ALL[0];
    let model = reference.model();
    // The test would end before the wait for nodes.
    let args = [
        "serve",
        "-m",
        model.to_str().expect("utf-8"),
        "--listen=127.0.0.1:0",
        "--threads=1",
        "--local-fallback=always",
        "--wait-for-nodes=86400",
        "--nodes=127.0.0.1:9",
    ];
    let server = Server::start(COORD, &args).expect("ready without nodes");
    let url = server.ready.as_str();
    let (status, health) = get(url, "/health");
    assert_eq!((status, &health["status"]), (200, &json!("degraded")));
    let names = json!(["nodes_missing", "local_fallback_active"]);
    assert_eq!(health["degraded"], names);
    assert_eq!(complete(url, 2).status(), 200);
}
