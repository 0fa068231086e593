//! Plain completions.

use serde_json::{Value, json};

use crate::server::Server;

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn text_is_completed_whole_and_streamed() {
    let server = Server::start().await;
    let body = json!({"prompt": "say:abc<think>", "max_tokens": 40});
    let answer = server.complete(body.clone()).await;
    assert_eq!(answer["object"], "text_completion");
    let choice = &answer["choices"][0];
    // Markers have no meaning in a plain text.
    assert_eq!(choice["text"], "abc<think>");
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["logprobs"], Value::Null);
    assert_eq!(answer["usage"]["prompt_tokens"], 15);

    let stream = server.stream(PATH, body).await;
    let text: String = stream
        .chunks
        .iter()
        .filter_map(|c| c["choices"][0]["text"].as_str())
        .collect();
    assert_eq!(text, "abc<think>");
    assert_eq!(stream.finish_reason(), "stop");
    assert!(stream.done);
}

#[tokio::test]
async fn token_ids_are_taken_as_they_are() {
    let server = Server::start().await;
    let ids: Vec<u32> = "say:xyz".bytes().map(u32::from).collect();
    let answer = server
        .complete(json!({"prompt": ids.clone(), "max_tokens": 9}))
        .await;
    assert_eq!(answer["choices"][0]["text"], "xyz");
    assert_eq!(answer["usage"]["prompt_tokens"], 7);
    let one = server.complete(json!({"prompt": ["say:one"]})).await;
    assert_eq!(one["choices"][0]["text"], "one");
    let one = server.complete(json!({"prompt": [ids]})).await;
    assert_eq!(one["choices"][0]["text"], "xyz");
}

#[tokio::test]
async fn sixteen_tokens_are_the_default() {
    let server = Server::start().await;
    let answer = server
        .complete(json!({"prompt": "say:abcdefghijklmnopqrstuvwxyz"}))
        .await;
    assert_eq!(answer["choices"][0]["text"], "abcdefghijklmnop");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn log_probabilities_have_their_own_form() {
    let server = Server::start().await;
    let answer = server
        .complete(json!({"prompt": "say:ab", "logprobs": 2, "max_tokens": 2}))
        .await;
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "b"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1]));
    assert_eq!(logprobs["top_logprobs"][1].as_object().unwrap().len(), 2);
    assert!(logprobs["token_logprobs"][0].as_f64().unwrap() > -1e-6);
}

#[tokio::test]
async fn usage_comes_last_when_requested() {
    let server = Server::start().await;
    let body = json!({"prompt": "say:ab", "stream_options": {"include_usage": true}});
    let stream = server.stream(PATH, body).await;
    let last = stream.chunks.last().unwrap();
    assert_eq!(last["usage"]["completion_tokens"], 3);
    assert_eq!(last["choices"], json!([]));
}
