//! The metrics that Prometheus scrapes. The recorder belongs to the process and other tests count
//! in it too, so only growth can be checked.

use std::collections::HashMap;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::server::{Server, say, with};

const CHAT: &str = "/v1/chat/completions";

async fn read(server: &Server) -> HashMap<String, f64> {
    let response = server.get("/metrics").await;
    assert_eq!(response.status(), StatusCode::OK);
    let text = response.text().await.unwrap();
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[tokio::test]
async fn requests_and_tokens_are_counted() {
    let server = Server::start().await;
    let before = read(&server).await;
    server.chat(say("four")).await;
    server.stream(CHAT, say("more")).await;
    server
        .post(CHAT, &with(say("x"), json!({"temperature": 9})))
        .await;
    server.wait_idle().await;
    let after = read(&server).await;
    let requests =
        |outcome: &str| format!("ds4_requests_total{{route=\"{CHAT}\",outcome=\"{outcome}\"}}");
    for (name, least) in [
        (requests("ok"), 2.0),
        (requests("refused"), 1.0),
        ("ds4_prompt_tokens_total".into(), 24.0),
        ("ds4_generated_tokens_total".into(), 10.0),
        ("ds4_time_to_first_token_seconds_count".into(), 2.0),
        ("ds4_inter_token_latency_seconds_count".into(), 8.0),
        ("ds4_request_queue_time_seconds_count".into(), 2.0),
        (
            format!("ds4_request_duration_seconds_count{{route=\"{CHAT}\"}}"),
            3.0,
        ),
    ] {
        let grown = after[&name] - before.get(&name).unwrap_or(&0.0);
        assert!(grown >= least, "{name} grew by {grown}");
    }
    for name in [
        "ds4_requests_running",
        "ds4_requests_waiting",
        "ds4_kv_memory_budget_bytes",
        "ds4_kv_memory_reserved_bytes",
    ] {
        assert!(after.contains_key(name));
    }
    let infinite = after.keys().any(|name| {
        name.starts_with("ds4_inter_token_latency_seconds_bucket") && name.contains("+Inf")
    });
    assert!(infinite, "latencies are not in buckets");
}

#[tokio::test]
async fn health_and_models_report_what_is_served() {
    let server = Server::start().await;
    let health: Value = server.get("/health").await.json().await.unwrap();
    assert_eq!(health["status"], "ok");
    let models: Value = server.get("/v1/models").await.json().await.unwrap();
    assert_eq!(models["object"], "list");
    assert_eq!(models["data"][0]["id"], "scripted");
    assert_eq!(models["data"][0]["max_model_len"], 2000);
    let model: Value = server
        .get("/v1/models/deepseek-chat")
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(model["object"], "model");
}
