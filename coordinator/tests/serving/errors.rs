//! Bad requests get the right status, an error in OpenAI's form, and the field at fault.

use ds4_coordinator::http::HttpSettings;
use ds4_coordinator::scheduler::SchedulerLimits;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::script::{CONTEXT, EXPERTS_FAIL, NOT_A_NUMBER};
use crate::server::{Server, say, with};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

async fn error(response: reqwest::Response, status: StatusCode) -> Value {
    let found = response.status();
    let body: Value = response.json().await.unwrap();
    assert_eq!(found, status, "{body}");
    let error = &body["error"];
    assert!(!error["message"].as_str().unwrap().is_empty());
    assert!(error["type"].is_string());
    assert!(error.get("param").is_some() && error.get("code").is_some());
    error.clone()
}

#[tokio::test]
async fn wrong_fields_of_chats_are_named() {
    let server = Server::start().await;
    let message = |message: Value| json!({"messages": [message]});
    let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
    for (more, param) in [
        (json!({"messages": null}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": ["hi"]}), "messages[0]"),
        (message(json!({"content": "x"})), "messages[0].role"),
        (
            message(json!({"role": "robot", "content": "x"})),
            "messages[0].role",
        ),
        (message(json!({"role": "user"})), "messages[0].content"),
        (
            message(json!({"role": "user", "content": 5})),
            "messages[0].content",
        ),
        (
            message(json!({"role": "user", "content": image})),
            "messages[0].content[0]",
        ),
        (
            message(json!({"role": "user", "content": [{"type": "text"}]})),
            "messages[0].content[0].text",
        ),
        (
            message(json!({"role": "assistant", "tool_calls": [{"id": "c", "function": {}}]})),
            "messages[0].tool_calls[0].function.name",
        ),
        (json!({"model": 5}), "model"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": 2.5}), "temperature"),
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_p": 1.01}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"min_p": 2}), "min_p"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": "many"}), "max_tokens"),
        (
            json!({"max_completion_tokens": -1}),
            "max_completion_tokens",
        ),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": []}), "stream_options"),
        (
            json!({"stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
        ),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": ["a", ""]}), "stop[1]"),
        (json!({"stop": vec!["x"; 17]}), "stop"),
        (json!({"stop": ["a", "x".repeat(1025)]}), "stop[1]"),
        (json!({"stop": vec!["x".repeat(1000); 5]}), "stop"),
        (json!({"n": 2}), "n"),
        (json!({"presence_penalty": 0.5}), "presence_penalty"),
        (json!({"logit_bias": {"5": 100}}), "logit_bias"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
        ),
        (json!({"reasoning_effort": "huge"}), "reasoning_effort"),
        (json!({"thinking": true}), "thinking"),
        (json!({"thinking": {"type": "maybe"}}), "thinking.type"),
        (
            json!({"response_format": {"type": "xml"}}),
            "response_format.type",
        ),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format.type",
        ),
    ] {
        let response = server.post(CHAT, &with(say("x"), more.clone())).await;
        let error = error(response, StatusCode::BAD_REQUEST).await;
        assert_eq!(error["param"], param, "{more}: {error}");
        assert!(error["message"].as_str().unwrap().len() < 300);
    }
    assert_eq!(server.controls.step_count(), 0);
}

#[tokio::test]
async fn wrong_fields_of_completions_are_named() {
    let server = Server::start().await;
    for (more, param) in [
        (json!({"prompt": null}), "prompt"),
        (json!({"prompt": 5}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": ["a", "b"]}), "prompt"),
        (json!({"prompt": [[1], [2]]}), "prompt"),
        (json!({"prompt": [1, -1]}), "prompt[1]"),
        (json!({"prompt": [1, 5_000_000_000_u64]}), "prompt[1]"),
        (json!({"prompt": [99_999]}), "prompt"),
        (json!({"echo": true}), "echo"),
        (json!({"suffix": "end"}), "suffix"),
        (json!({"best_of": 3}), "best_of"),
        (json!({"logprobs": 99}), "logprobs"),
    ] {
        let response = server
            .post(TEXT, &with(json!({"prompt": "x"}), more.clone()))
            .await;
        let error = error(response, StatusCode::BAD_REQUEST).await;
        assert_eq!(error["param"], param, "{more}: {error}");
    }
}

#[tokio::test]
async fn bodies_other_than_json_objects_are_refused() {
    let server = Server::start().await;
    let deep = "[".repeat(100_000);
    for body in [
        "",
        "{",
        "nonsense",
        "[]",
        "5",
        "{\"messages\": [}",
        "\u{0}",
        &deep,
    ] {
        for path in [CHAT, TEXT] {
            let request = server.client.post(format!("{}{path}", server.url));
            let response = request.body(body.to_owned()).send().await.unwrap();
            error(response, StatusCode::BAD_REQUEST).await;
        }
    }
    let request = server.client.post(format!("{}{CHAT}", server.url));
    let response = request.body(vec![0xff, 0xfe, b'{']).send().await.unwrap();
    error(response, StatusCode::BAD_REQUEST).await;
}

#[tokio::test]
async fn an_unknown_model_is_not_found_and_the_served_ones_are_listed() {
    let server = Server::start().await;
    let response = server
        .post(CHAT, &with(say("x"), json!({"model": "gpt-9"})))
        .await;
    let unknown = error(response, StatusCode::NOT_FOUND).await;
    assert_eq!(unknown["code"], "model_not_found");
    let message = unknown["message"].as_str().unwrap();
    for name in [
        "gpt-9",
        "scripted",
        "script",
        "deepseek-chat",
        "deepseek-reasoner",
    ] {
        assert!(message.contains(name), "{message}");
    }
    for name in ["scripted", "script", "deepseek-chat"] {
        server.chat(with(say("x"), json!({"model": name}))).await;
    }
    error(server.get("/v1/models/gpt-9").await, StatusCode::NOT_FOUND).await;
}

#[tokio::test]
async fn too_long_a_prompt_is_refused_with_the_numbers() {
    let server = Server::start().await;
    let long = "x".repeat(CONTEXT);
    let response = server.post(TEXT, &json!({"prompt": long})).await;
    let error = error(response, StatusCode::BAD_REQUEST).await;
    assert_eq!(error["code"], "context_length_exceeded");
    assert_eq!(error["param"], "prompt");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("2001") && message.contains("2000"),
        "{message}"
    );
    // The longest one that fits leaves room for one token.
    let ids = vec![120; CONTEXT - 1];
    let answer = server
        .complete(json!({"prompt": ids, "max_tokens": 1000}))
        .await;
    assert_eq!(answer["usage"]["completion_tokens"], 1);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn too_large_a_body_is_refused() {
    let settings = HttpSettings {
        body_limit: 1000,
        ..HttpSettings::default()
    };
    let server = Server::with(SchedulerLimits::default(), settings).await;
    let response = server.post(CHAT, &say(&"x".repeat(1000))).await;
    let error = error(response, StatusCode::PAYLOAD_TOO_LARGE).await;
    assert_eq!(error["code"], "body_too_large");
    server.chat(say("small")).await;
}

#[tokio::test]
async fn wrong_paths_and_methods_are_told_apart() {
    let server = Server::start().await;
    for path in ["/v2/nothing", "/v1/models/nothing", "/v1/models/%ff"] {
        error(server.get(path).await, StatusCode::NOT_FOUND).await;
    }
    error(server.get(CHAT).await, StatusCode::METHOD_NOT_ALLOWED).await;
    error(
        server.post("/health", &json!({})).await,
        StatusCode::METHOD_NOT_ALLOWED,
    )
    .await;
}

#[tokio::test]
async fn failing_experts_fail_the_request_and_tell_no_addresses() {
    let server = Server::start().await;
    let response = server.post(CHAT, &say(EXPERTS_FAIL)).await;
    assert!(response.headers().contains_key("retry-after"));
    let failed = error(response, StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(failed["code"], "experts_unavailable");
    let internal = ["10.0.0.7", "50052", "connection reset", "layer"];
    let message = failed["message"].as_str().unwrap();
    assert!(
        !internal.iter().any(|word| message.contains(word)),
        "{message}"
    );

    let stream = server.stream(CHAT, say(EXPERTS_FAIL)).await;
    let text = stream.errors[0].to_string();
    assert!(!internal.iter().any(|word| text.contains(word)), "{text}");
    assert_eq!(stream.errors[0]["error"]["code"], "experts_unavailable");
    assert!(stream.done && stream.chunks.is_empty());
    // The server itself keeps working.
    server.chat(say("fine")).await;
}

#[tokio::test]
async fn logits_that_are_not_numbers_fail_the_request() {
    let server = Server::start().await;
    let response = server.post(CHAT, &say(NOT_A_NUMBER)).await;
    let failed = error(response, StatusCode::INTERNAL_SERVER_ERROR).await;
    assert_eq!(failed["code"], "engine_error");
    assert!(
        !failed["message"].as_str().unwrap().contains("logit"),
        "{failed}"
    );
    server.chat(say("fine")).await;
}

#[tokio::test]
async fn lone_surrogates_and_broken_text_are_explained() {
    let server = Server::start().await;
    let send = async |body: Vec<u8>| {
        let request = server.client.post(format!("{}{CHAT}", server.url));
        error(
            request.body(body).send().await.unwrap(),
            StatusCode::BAD_REQUEST,
        )
        .await
    };
    let lone = r#"{"messages": [{"role": "user", "content": "ab\ud800"}]}"#;
    let found = send(lone.into()).await;
    assert_eq!(found["param"], "messages[0].content");
    let message = found["message"].as_str().unwrap();
    assert!(
        message.contains("lone surrogate") && message.contains("2 bytes"),
        "{message}"
    );
    let found = send(b"{\"messages\": \"\xff\"}".to_vec()).await;
    assert_eq!(found["code"], "malformed_json");
    assert!(
        found["message"].as_str().unwrap().contains("UTF-8"),
        "{found}"
    );
    let deep = format!("{{\"unknown\": {}{}}}", "[".repeat(200), "]".repeat(200));
    let found = send(deep.into()).await;
    assert!(
        found["message"].as_str().unwrap().contains("128 levels"),
        "{found}"
    );
}

#[tokio::test]
async fn lists_are_left_at_their_first_bad_entry() {
    let server = Server::start().await;
    let zeros = vec![0; 1_000_000];
    let many = |what: Value| Value::Array(vec![what; 200_000]);
    for (path, body, param) in [
        (CHAT, json!({"messages": zeros}), "messages[0]"),
        (CHAT, json!({"messages": many(json!([]))}), "messages[0]"),
        (CHAT, with(say("x"), json!({"tools": zeros})), "tools[0]"),
        (CHAT, with(say("x"), json!({"stop": zeros})), "stop[0]"),
        (
            CHAT,
            with(say("x"), json!({"stop": many(json!("a"))})),
            "stop",
        ),
        (
            CHAT,
            with(
                say("x"),
                json!({"tools": [{"function": {"name": "f", "parameters": {"a": zeros}}}]}),
            ),
            "tools[0].function",
        ),
        (TEXT, json!({"prompt": many(json!("a"))}), "prompt"),
    ] {
        let found = error(server.post(path, &body).await, StatusCode::BAD_REQUEST).await;
        assert_eq!(found["param"], param, "{found}");
    }
    // Counted to the end, but not kept.
    let response = server.post(TEXT, &json!({"prompt": zeros})).await;
    let found = error(response, StatusCode::BAD_REQUEST).await;
    assert_eq!(found["code"], "context_length_exceeded");
    assert!(
        found["message"]
            .as_str()
            .unwrap()
            .contains("1000000 tokens"),
        "{found}"
    );
    // A long text is not.
    let response = server
        .post(TEXT, &json!({"prompt": "x".repeat(1_000_000)}))
        .await;
    let found = error(response, StatusCode::BAD_REQUEST).await;
    assert_eq!(found["param"], "prompt");
    assert!(
        found["message"].as_str().unwrap().contains("more than"),
        "{found}"
    );
}
