//! Plain completions, whole and streamed.

use serde_json::{Value, json};

use crate::script::{Act, say};
use crate::server::{COMPLETIONS, serve};

#[tokio::test]
async fn a_completion_continues_the_prompt_as_it_is() {
    let server = serve(|prompt| {
        assert_eq!(prompt, "<｜begin▁of▁sentence｜>Once <think>");
        say("upon</think> a time")
    })
    .await;
    let body = json!({"prompt": "Once <think>", "max_tokens": 100});
    let answer = server.ok(COMPLETIONS, &body).await;
    assert_eq!(answer["object"], "text_completion");
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "upon</think> a time");
    assert_eq!(choice["finish_reason"], "stop");
    // The begin token and twelve bytes; four letters, a marker, seven letters and the end.
    assert_eq!(
        (
            &answer["usage"]["prompt_tokens"],
            &answer["usage"]["completion_tokens"]
        ),
        (&json!(13), &json!(13))
    );
}

#[tokio::test]
async fn a_stream_says_the_same_and_its_usage() {
    let server = serve(|_| say("déjà vu")).await;
    let mut body = json!({"prompt": ["a"], "max_tokens": 100});
    let whole = server.ok(COMPLETIONS, &body).await;
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let chunks = server.stream(COMPLETIONS, &body).await;
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["text"].as_str())
        .collect();
    assert_eq!(text, "déjà vu");
    let reasons: Vec<&Value> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0]["finish_reason"])
        .filter(|reason| !reason.is_null())
        .collect();
    assert_eq!(reasons, ["stop"]);
    let last = chunks.last().expect("chunks");
    assert_eq!(last["usage"], whole["usage"]);
}

#[tokio::test]
async fn sixteen_tokens_are_the_default_and_token_ids_a_prompt() {
    let server = serve(|_| Act::Repeat("x".into())).await;
    let body = json!({"prompt": [0, 8, 9, 10]});
    let answer = server.ok(COMPLETIONS, &body).await;
    assert_eq!(answer["choices"][0]["text"], "x".repeat(16));
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(server.probe.prompts(), [vec![0, 8, 9, 10]]);
}

#[tokio::test]
async fn stop_texts_and_ignored_ends() {
    let server = serve(|prompt| {
        if prompt.ends_with("stop") {
            Act::Repeat("ab.".into())
        } else {
            say("ab")
        }
    })
    .await;
    let body = json!({"prompt": "stop", "stop": ".a", "max_tokens": 50});
    let answer = server.ok(COMPLETIONS, &body).await;
    assert_eq!(answer["choices"][0]["text"], "ab");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let body = json!({"prompt": "go on", "ignore_eos": true, "max_tokens": 9});
    let answer = server.ok(COMPLETIONS, &body).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 9);
}

#[tokio::test]
async fn log_probabilities_tell_where_each_token_stands() {
    let server = serve(|_| say("abc")).await;
    let body = json!({"prompt": "x", "logprobs": 1});
    let answer = server.ok(COMPLETIONS, &body).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(
        logprobs["tokens"],
        json!(["a", "b", "c", "<｜end▁of▁sentence｜>"])
    );
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3]));
    assert_eq!(logprobs["token_logprobs"], json!([0.0, 0.0, 0.0, 0.0]));
}
