//! The routes that only tell something, and who may ask.

use reqwest::Method;
use serde_json::{Value, json};

use ds4_coordinator::http::HttpSettings;

use crate::script::say;
use crate::server::{CHAT, COMPLETIONS, Setup, error_of, serve};

#[tokio::test]
async fn models_are_listed_under_all_their_names() {
    let server = serve(|_| say("x")).await;
    let list: Value = server.get("/v1/models").await.json().await.expect("JSON");
    assert_eq!(list["object"], "list");
    let ids: Vec<&str> = list["data"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|model| model["id"].as_str())
        .collect();
    assert_eq!(
        ids,
        [
            "scripted",
            "other-name",
            "deepseek-chat",
            "deepseek-reasoner"
        ]
    );
    for id in ids {
        let path = format!("/v1/models/{id}");
        let model: Value = server.get(&path).await.json().await.expect("JSON");
        assert_eq!(
            (&model["id"], &model["object"]),
            (&json!(id), &json!("model"))
        );
        let body = json!({"model": id, "prompt": "x"});
        assert_eq!(server.ok(COMPLETIONS, &body).await["model"], "scripted");
    }
}

#[tokio::test]
async fn health_page_and_metrics() {
    let server = serve(|_| say("</think>abc")).await;
    let health: Value = server.get("/health").await.json().await.expect("JSON");
    assert_eq!(health["status"], "ok");

    let page = server.get("/").await;
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let policy = &page.headers()["content-security-policy"];
    assert!(
        policy
            .to_str()
            .is_ok_and(|p| p.starts_with("default-src 'none'"))
    );
    let page = page.text().await.expect("text");
    assert!(page.contains("v1/chat/completions"));
    assert!(!page.contains("http://") && !page.contains("https://"));

    let messages = json!([{"role": "user", "content": "x"}]);
    server.ok(CHAT, &json!({"messages": messages})).await;
    server.refused(CHAT, &json!({}), 400).await;
    let metrics = server.get("/metrics").await.text().await.expect("text");
    for name in [
        "ds4_requests_total{route=\"/v1/chat/completions\",outcome=\"ok\"}",
        "ds4_requests_total{route=\"/v1/chat/completions\",outcome=\"refused\"}",
        "ds4_prompt_tokens_total",
        "ds4_generated_tokens_total",
        "ds4_time_to_first_token_seconds_count",
        "ds4_inter_token_latency_seconds_count",
        "ds4_request_queue_time_seconds_count",
        "ds4_step_duration_seconds_count",
    ] {
        let line = metrics.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        assert!(value.is_some_and(|value| value >= 1.0), "{name}: {line:?}");
    }
}

#[tokio::test]
async fn request_ids_come_back() {
    let server = serve(|_| say("x")).await;
    let url = format!("{}/health", server.url);
    let request = server.client.get(&url).header("x-request-id", "mine-7");
    let response = request.send().await.expect("an answer");
    assert_eq!(response.headers()["x-request-id"], "mine-7");
    let (first, second) = (server.get("/health").await, server.get("/health").await);
    assert_ne!(
        first.headers()["x-request-id"],
        second.headers()["x-request-id"]
    );
}

#[tokio::test]
async fn pages_from_elsewhere_need_permission() {
    let setup = Setup {
        http: HttpSettings {
            cors: vec!["https://allowed.example".into()],
            ..HttpSettings::default()
        },
        script: |_| say("x"),
        ..Setup::default()
    };
    let server = setup.serve().await;
    let url = format!("{}{COMPLETIONS}", server.url);
    let post = |origin: &str| {
        let request = server.client.post(&url).header("origin", origin);
        request.json(&json!({"prompt": "x"})).send()
    };
    let stranger = post("https://evil.example").await.expect("an answer");
    error_of(stranger, 403).await;
    let known = post("https://allowed.example").await.expect("an answer");
    assert_eq!(known.status(), 200);
    let allowed = &known.headers()["access-control-allow-origin"];
    assert_eq!(allowed, "https://allowed.example");
    let own = post(&server.url).await.expect("an answer");
    assert_eq!(own.status(), 200);
    let preflight = server
        .client
        .request(Method::OPTIONS, &url)
        .header("origin", "https://allowed.example")
        .header("access-control-request-method", "POST");
    let preflight = preflight.send().await.expect("an answer");
    assert_eq!(preflight.status(), 204);
    let headers = &preflight.headers()["access-control-allow-headers"];
    assert!(headers.to_str().is_ok_and(|h| h.contains("content-type")));
}
