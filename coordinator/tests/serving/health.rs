//! What health and readiness say, and what becomes of requests that cannot succeed.

use std::sync::Arc;

use ds4_coordinator::http::ExpertsReport;
use ds4_coordinator::scheduler::SchedulerLimits;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::server::{ALL_THERE, Server, say};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn health_and_readiness_name_what_is_missing() {
    let server = Server::start().await;
    let report = |up, total, covered, own_file| ExpertsReport {
        up,
        total,
        covered,
        own_file,
    };
    for (experts, status, word, degraded) in [
        (ALL_THERE, 200, "ok", json!([])),
        (
            report(2, 3, true, false),
            200,
            "degraded",
            json!(["nodes_missing"]),
        ),
        (
            report(0, 1, false, true),
            200,
            "degraded",
            json!(["nodes_missing", "local_fallback_active"]),
        ),
        (
            report(1, 1, false, true),
            200,
            "degraded",
            json!(["local_fallback_active"]),
        ),
        (
            report(0, 2, false, false),
            503,
            "no_nodes",
            json!(["nodes_missing"]),
        ),
        (
            report(1, 2, false, false),
            503,
            "experts_missing",
            json!(["nodes_missing"]),
        ),
    ] {
        *server.experts.lock().unwrap() = experts;
        let health = server.get("/health").await;
        assert_eq!(health.status().as_u16(), status, "{word}");
        assert_eq!(health.headers().contains_key("retry-after"), status == 503);
        let health: Value = health.json().await.unwrap();
        assert_eq!(health["status"], word);
        assert_eq!(health["degraded"], degraded);
        assert_eq!(
            health["nodes"],
            json!({"up": experts.up, "total": experts.total})
        );
        let ready = server.get("/ready").await;
        assert_eq!(ready.status().as_u16(), status, "{word}");
        let ready: Value = ready.json().await.unwrap();
        let reason = if status == 503 {
            json!(word)
        } else {
            Value::Null
        };
        assert_eq!(ready, json!({"ready": status == 200, "reason": reason}));
        // A restart would not bring nodes back.
        assert_eq!(server.get("/live").await.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn without_experts_requests_fail_at_once_and_what_runs_goes_on() {
    let limits = SchedulerLimits {
        max_sequences: 1,
        ..SchedulerLimits::default()
    };
    let server = Arc::new(Server::limited(limits).await);
    server.controls.hold();
    let ask = |text: &str| {
        let (server, body) = (Arc::clone(&server), say(text));
        tokio::spawn(async move { server.post(CHAT, &body).await })
    };
    let running = ask("one that runs");
    server.wait_counts(1, 0).await;
    let waiting: Vec<_> = (0..3).map(|_| ask("one that waits")).collect();
    server.wait_counts(1, 3).await;
    server.scheduler.set_experts_available(false);
    let mut refused = vec![server.post(CHAT, &say("one that comes too late")).await];
    for answer in waiting {
        refused.push(answer.await.unwrap());
    }
    for response in refused {
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers().contains_key("retry-after"));
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"]["code"], "experts_unavailable");
    }
    server.wait_counts(1, 0).await;
    server.controls.release();
    assert_eq!(running.await.unwrap().status(), StatusCode::OK);
    server.scheduler.set_experts_available(true);
    let again = server.post(CHAT, &say("once more")).await;
    assert_eq!(again.status(), StatusCode::OK);
}
