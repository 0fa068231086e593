//! For any JSON, the answer has a proper status, and an error is proper JSON.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, Value, json};

use crate::server::{Server, say};

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-3i64..5).prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "user",
            "tool",
            "assistant",
            "text",
            "function",
            "enabled"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        let key = prop_oneof![known_key(), "[a-z]{1,6}"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn known_key() -> impl Strategy<Value = String> {
    let keys = [
        "messages",
        "role",
        "content",
        "type",
        "text",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "id",
        "tools",
        "tool_choice",
        "parameters",
        "thinking",
        "reasoning_effort",
        "response_format",
        "stop",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "max_tokens",
        "stream",
        "stream_options",
        "include_usage",
        "logprobs",
        "top_logprobs",
        "prompt",
        "n",
        "model",
        "echo",
        "suffix",
        "logit_bias",
        "ignore_eos",
        "prefix",
        "tool_call_id",
        "reasoning_content",
        "chat_template_kwargs",
    ];
    prop::sample::select(keys.map(String::from).to_vec())
}

/// A valid request with some of its fields replaced.
fn nearly_valid() -> impl Strategy<Value = Value> {
    let fields = prop::collection::vec((known_key(), anything()), 0..4);
    (fields, any::<bool>()).prop_map(|(fields, chat)| {
        let mut body = if chat {
            say("fine")
        } else {
            json!({"prompt": "say:fine"})
        };
        for (key, value) in fields {
            body[key] = value;
        }
        body
    })
}

fn message() -> impl Strategy<Value = Value> {
    let role = prop::sample::select(vec!["user", "assistant", "tool", "system"]);
    let fields = prop::collection::vec((known_key(), anything()), 0..3);
    (role, "\\PC{0,20}", fields).prop_map(|(role, content, fields)| {
        let mut message = Map::new();
        message.insert("role".into(), role.into());
        message.insert("content".into(), content.into());
        message.extend(fields);
        Value::Object(message)
    })
}

fn body() -> impl Strategy<Value = Value> {
    prop_oneof![
        anything(),
        nearly_valid(),
        prop::collection::vec(message(), 1..4).prop_map(|messages| json!({"messages": messages})),
    ]
}

#[test]
fn any_json_gets_a_proper_answer() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Server::start());
    let mut runner = TestRunner::new(Config {
        cases: 400,
        ..Config::default()
    });
    let paths = prop::sample::select(vec!["/v1/chat/completions", "/v1/completions"]);
    let outcome = runner.run(&(paths, body()), |(path, body)| {
        let (status, text) = runtime.block_on(async {
            let response = server.post(path, &body).await;
            (response.status(), response.text().await.unwrap())
        });
        if status.is_success() {
            prop_assert!(!text.contains("event: error"), "{}", text);
        } else {
            prop_assert!(status.is_client_error(), "{status}: {text}");
            let error: Value = serde_json::from_str(&text).unwrap();
            prop_assert!(error["error"]["message"].is_string());
        }
        Ok(())
    });
    outcome.unwrap();
    runtime.block_on(async {
        server.chat(say("still here")).await;
        server.wait_idle().await;
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
}
