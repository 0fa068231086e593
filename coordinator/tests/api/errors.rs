//! Everything that a client can get wrong.

use reqwest::Method;
use serde_json::{Value, json};

use ds4_coordinator::http::HttpSettings;

use crate::script::{Act, say};
use crate::server::{CHAT, COMPLETIONS, Server, Setup, error_of, serve};

async fn raw(server: &Server, path: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
    let url = format!("{}{path}", server.url);
    let request = server.client.post(url).body(body);
    request.send().await.expect("an answer")
}

#[tokio::test]
async fn what_is_not_json_is_refused_with_the_place() {
    let server = serve(|_| say("x")).await;
    let deep = "[".repeat(100_000);
    for path in [CHAT, COMPLETIONS] {
        for text in [
            "",
            "{",
            "{\"messages\": [}",
            "\u{feff}{}",
            "nonsense",
            &deep,
        ] {
            let error = error_of(raw(&server, path, text.to_owned()).await, 400).await;
            assert_eq!(error["code"], "malformed_json");
            let message = error["message"].as_str().expect("a message");
            assert!(message.contains("line 1 column"), "{message}");
        }
        let not_text = raw(&server, path, vec![b'"', 0xff, b'"']).await;
        error_of(not_text, 400).await;
        for text in ["[]", "null", "3", "\"x\""] {
            let error = error_of(raw(&server, path, text.to_owned()).await, 400).await;
            let message = error["message"].as_str().expect("a message");
            assert!(message.contains("must be a JSON object"), "{message}");
        }
    }
}

/// Each of `cases` is a chat with some fields and the one that is to blame.
async fn check_chats(cases: Vec<(Value, &str)>) {
    let server = serve(|_| say("x")).await;
    for (fields, param) in cases {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
        let map = body.as_object_mut().expect("an object");
        map.extend(fields.as_object().expect("an object").clone());
        let error = server.refused(CHAT, &body, 400).await;
        assert_eq!(error["param"], param, "{fields}: {error}");
        let name = param.split(['.', '[']).next().expect("a first part");
        let message = error["message"].as_str().expect("a message");
        assert!(
            message.contains(name) || message.contains("text"),
            "{message}"
        );
    }
    assert!(server.probe.prompts().is_empty());
}

#[tokio::test]
async fn wrong_messages_and_tools_are_named() {
    check_chats(vec![
        (json!({"messages": null}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hello"}), "messages"),
        (json!({"messages": [5]}), "messages[0]"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        (
            json!({"messages": [{"role": "wizard", "content": "x"}]}),
            "messages[0].role",
        ),
        (
            json!({"messages": [{"role": "user", "content": 7}]}),
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages[0].content[0]",
        ),
        (json!({"tools": [{}]}), "tools[0].function"),
        (
            json!({"tools": [{"type": "function", "function": {}}]}),
            "tools[0].function",
        ),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"reasoning_effort": "utmost"}), "reasoning_effort"),
        (json!({"thinking": {"type": "maybe"}}), "thinking.type"),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format.type",
        ),
    ])
    .await;
}

#[tokio::test]
async fn wrong_options_are_named() {
    check_chats(vec![
        (json!({"model": 4}), "model"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": 1}), "stream_options"),
        (
            json!({"stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
        ),
        (json!({"temperature": 2.5}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_k": 1.5}), "top_k"),
        (json!({"min_p": -0.1}), "min_p"),
        (json!({"seed": "s"}), "seed"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (
            json!({"max_completion_tokens": -3}),
            "max_completion_tokens",
        ),
        (json!({"stop": 1}), "stop"),
        (json!({"stop": ["a", ""]}), "stop[1]"),
        (json!({"stop": vec!["a"; 17]}), "stop"),
        (json!({"n": 2}), "n"),
        (json!({"presence_penalty": 0.5}), "presence_penalty"),
        (json!({"logit_bias": {"5": 1}}), "logit_bias"),
        (json!({"logprobs": 1}), "logprobs"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
        ),
    ])
    .await;
}

#[tokio::test]
async fn wrong_fields_of_a_completion_are_named() {
    let server = serve(|_| say("x")).await;
    for (body, param) in [
        (json!({}), "prompt"),
        (json!({"prompt": {}}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": ["a", "b"]}), "prompt"),
        (json!({"prompt": [[1], [2]]}), "prompt"),
        (json!({"prompt": [1, -2]}), "prompt[1]"),
        (json!({"prompt": [1, 1.5]}), "prompt[1]"),
        (json!({"prompt": [999_999]}), "prompt"),
        (json!({"prompt": "a", "echo": true}), "echo"),
        (json!({"prompt": "a", "suffix": "b"}), "suffix"),
        (json!({"prompt": "a", "best_of": 2}), "best_of"),
        (json!({"prompt": "a", "logprobs": true}), "logprobs"),
    ] {
        let error = server.refused(COMPLETIONS, &body, 400).await;
        assert_eq!(error["param"], param, "{body}: {error}");
    }
}

#[tokio::test]
async fn an_unknown_model_is_told_the_known_ones() {
    let server = serve(|_| say("x")).await;
    let messages = json!([{"role": "user", "content": "x"}]);
    let chat = json!({"model": "gpt-4", "messages": messages});
    let completion = json!({"model": "gpt-4", "prompt": "x"});
    for (path, body) in [(CHAT, chat), (COMPLETIONS, completion)] {
        let error = server.refused(path, &body, 404).await;
        assert_eq!(error["code"], "model_not_found");
        let message = error["message"].as_str().expect("a message");
        for name in ["gpt-4", "scripted", "other-name", "deepseek-chat"] {
            assert!(message.contains(name), "{message}");
        }
    }
    error_of(server.get("/v1/models/gpt-4").await, 404).await;
}

#[tokio::test]
async fn too_long_a_prompt_is_told_the_numbers() {
    let setup = Setup {
        context: 100,
        ..Setup::default()
    };
    let server = setup.serve().await;
    let text = "x".repeat(99);
    let messages = json!([{"role": "user", "content": text}]);
    let chat = json!({"messages": messages});
    let error = server.refused(CHAT, &chat, 400).await;
    assert_eq!(error["code"], "context_length_exceeded");
    assert_eq!(error["param"], "messages");
    // 99 letters and the begin token.
    let completion = json!({"prompt": text});
    let error = server.refused(COMPLETIONS, &completion, 400).await;
    assert_eq!(error["param"], "prompt");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("has 100 tokens"), "{message}");
    assert!(message.contains("holds 100"), "{message}");
    let fits = json!({"prompt": &text[1..]});
    let answer = server.ok(COMPLETIONS, &fits).await;
    assert_eq!(answer["usage"]["total_tokens"], 100);
}

#[tokio::test]
async fn too_large_a_body_is_refused_however_it_comes() {
    let setup = Setup {
        http: HttpSettings {
            body_limit: 1000,
            ..HttpSettings::default()
        },
        ..Setup::default()
    };
    let server = setup.serve().await;
    for size in [1001, 3 << 20] {
        let whole = raw(&server, CHAT, " ".repeat(size)).await;
        let error = error_of(whole, 413).await;
        assert_eq!(error["code"], "body_too_large");
        let pieces = (0..size.div_ceil(500)).map(|_| Ok::<_, std::io::Error>(vec![b' '; 500]));
        let body = reqwest::Body::wrap_stream(futures::stream::iter(pieces));
        error_of(raw(&server, CHAT, body).await, 413).await;
    }
    let just_fits = format!("{{\"prompt\": \"{}\"}}", "x".repeat(1000 - 14));
    assert_eq!(just_fits.len(), 1000);
    let response = raw(&server, COMPLETIONS, just_fits).await;
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn wrong_methods_and_unknown_paths() {
    let server = serve(|_| say("x")).await;
    for (method, path, status) in [
        (Method::GET, CHAT, 405),
        (Method::DELETE, COMPLETIONS, 405),
        (Method::POST, "/v1/models", 405),
        (Method::POST, "/health", 405),
        (Method::GET, "/v1/embeddings", 404),
        (Method::POST, "/v1/chat/completions/", 404),
        (Method::GET, "/v1/models/%ff", 404),
        (Method::GET, "/../etc/passwd", 404),
    ] {
        let url = format!("{}{path}", server.url);
        let request = server.client.request(method.clone(), url);
        let response = request.send().await.expect("an answer");
        if status == 405 {
            assert!(response.headers().contains_key("allow"), "{method} {path}");
        }
        error_of(response, status).await;
    }
}

#[tokio::test]
async fn failures_of_the_model_have_their_status() {
    use ds4_coordinator::scheduler::StepError;
    let server = serve(|prompt| {
        if prompt.contains("experts") {
            Act::Fail(StepError::Experts("node 3 is gone".into()))
        } else {
            Act::Fail(StepError::Engine("arithmetic".into()))
        }
    })
    .await;
    let experts = json!({"prompt": "experts"});
    let response = server.post(COMPLETIONS, &experts).await;
    assert!(response.headers().contains_key("retry-after"));
    let error = error_of(response, 503).await;
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("node 3 is gone"), "{message}");
    server
        .refused(COMPLETIONS, &json!({"prompt": "engine"}), 500)
        .await;

    // A stream has sent its status before the model fails.
    let streamed = json!({"prompt": "experts", "stream": true});
    let chunks: Vec<Value> = server.stream(COMPLETIONS, &streamed).await;
    assert_eq!(chunks.len(), 1);
    assert_eq!(chunks[0]["error"]["code"], "experts_unavailable");
}
