//! The chat page, and who may use the API from a browser.

use ds4_coordinator::http::HttpSettings;
use ds4_coordinator::scheduler::SchedulerLimits;
use reqwest::{Method, StatusCode};

use serde_json::json;

use crate::server::{Server, say, with};

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
async fn answers_and_headers_have_one_id() {
    let server = Server::start().await;
    for stream in [false, true] {
        let body = with(say("x"), json!({"stream": stream}));
        let response = server.post(CHAT, &body).await;
        let id = response.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned();
        assert!(id.starts_with("chatcmpl-"));
        let text = response.text().await.unwrap();
        assert!(text.contains(&format!("\"id\":\"{id}\"")), "{text}");
    }
    // Errors have theirs as well; an id that is long or does not print is not taken over.
    let long = "x".repeat(200);
    for id in ["has blanks", "\u{e9}", &long] {
        let request = server
            .client
            .post(format!("{}{CHAT}", server.url))
            .body("{");
        let response = request.header("x-request-id", id).send().await.unwrap();
        let given = response.headers()["x-request-id"].to_str().unwrap();
        assert!(given.starts_with("chatcmpl-"), "{given}");
    }
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
