//! The chat page, and who may use the API from a browser.

use ds4_coordinator::http::HttpSettings;
use ds4_coordinator::scheduler::SchedulerLimits;
use reqwest::{Method, StatusCode};

use crate::server::{Server, say};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn the_page_loads_nothing_from_elsewhere() {
    let server = Server::start().await;
    let response = server.get("/").await;
    assert_eq!(response.status(), StatusCode::OK);
    let policy = response.headers()["content-security-policy"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(policy.starts_with("default-src 'none'"));
    let page = response.text().await.unwrap();
    assert!(page.contains("v1/chat/completions"));
    for elsewhere in ["http://", "https://", "src=\"", "@import"] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }
}

#[tokio::test]
async fn pages_from_elsewhere_may_only_do_what_they_were_allowed() {
    let settings = HttpSettings {
        cors: vec!["https://good.example".into()],
        ..Default::default()
    };
    let server = Server::with(SchedulerLimits::default(), settings).await;
    let own = server.url.clone();
    for (origin, status) in [
        (own.as_str(), StatusCode::OK),
        ("https://good.example", StatusCode::OK),
        ("https://evil.example", StatusCode::FORBIDDEN),
        ("null", StatusCode::FORBIDDEN),
    ] {
        let request = server.client.post(format!("{}{CHAT}", server.url));
        let response = request
            .header("origin", origin)
            .json(&say("x"))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), status, "{origin}");
        let allowed = response.headers().get("access-control-allow-origin");
        assert_eq!(allowed.is_some(), origin == "https://good.example");
    }
    let request = server
        .client
        .request(Method::OPTIONS, format!("{}{CHAT}", server.url));
    let response = request
        .header("origin", "https://good.example")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    assert!(
        response
            .headers()
            .contains_key("access-control-allow-methods")
    );
}

#[tokio::test]
async fn request_ids_come_back() {
    let server = Server::start().await;
    let request = server.client.get(format!("{}/health", server.url));
    let response = request
        .header("x-request-id", "mine-7")
        .send()
        .await
        .unwrap();
    assert_eq!(response.headers()["x-request-id"], "mine-7");
    let (first, second) = (server.get("/health").await, server.get("/nothing").await);
    assert_ne!(
        first.headers()["x-request-id"],
        second.headers()["x-request-id"]
    );
}
