//! Chat answers, whole and streamed.

use serde_json::{Value, json};

use crate::script::{Act, say};
use crate::server::{CHAT, serve};
use crate::vocabulary::vocabulary;

fn ask(text: &str, more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": text}]});
    let fields = body.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    body
}

/// All pieces of one field of the deltas.
fn joined(chunks: &[Value], field: &str) -> String {
    chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str())
        .collect()
}

fn finish_reasons(chunks: &[Value]) -> Vec<&str> {
    chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["finish_reason"].as_str())
        .collect()
}

#[tokio::test]
async fn an_answer_keeps_reasoning_apart_and_counts_tokens() {
    let server = serve(|_| say("hm</think>Hi")).await;
    let answer = server.ok(CHAT, &ask("Hello", json!({}))).await;
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "scripted");
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["content"], "Hi");
    assert_eq!(choice["message"]["reasoning_content"], "hm");
    assert_eq!(choice["finish_reason"], "stop");
    // Two letters, the marker, two letters, the end.
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens"], 6);
    let prompt = server.probe.prompts()[0].len();
    assert_eq!(usage["prompt_tokens"], prompt);
    assert_eq!(usage["total_tokens"], prompt + 6);
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 3);
    server.closed().await;
}

#[tokio::test]
async fn a_stream_says_what_the_whole_answer_says() {
    let server = serve(|_| say("so, ß</think>Größe 🦀!")).await;
    let whole = server.ok(CHAT, &ask("x", json!({}))).await;
    let streamed = ask(
        "x",
        json!({"stream": true, "stream_options": {"include_usage": true}}),
    );
    let chunks = server.stream(CHAT, &streamed).await;
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["content"], "Größe 🦀!");
    assert_eq!(joined(&chunks, "content"), "Größe 🦀!");
    assert_eq!(joined(&chunks, "reasoning_content"), "so, ß");
    assert_eq!(finish_reasons(&chunks), ["stop"]);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], chunks[0]["id"]);
    }
    let (last, rest) = chunks.split_last().expect("chunks");
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"], whole["usage"]);
    assert!(rest.iter().all(|chunk| chunk["usage"].is_null()));
    server.closed().await;
}

#[tokio::test]
async fn usage_is_streamed_only_on_demand() {
    let server = serve(|_| say("</think>ab")).await;
    let chunks = server
        .stream(CHAT, &ask("x", json!({"stream": true})))
        .await;
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = ask("x", json!({"stream": true, "stream_options": options}));
    let chunks = server.stream(CHAT, &body).await;
    let counts: Vec<u64> = chunks
        .iter()
        .filter_map(|chunk| chunk["usage"]["completion_tokens"].as_u64())
        .collect();
    assert_eq!(counts.len(), chunks.len());
    assert!(counts.is_sorted(), "{counts:?}");
    assert_eq!(counts.last(), Some(&4));
}

#[tokio::test]
async fn thinking_is_switched_by_field_and_by_the_models_name() {
    let server = serve(|prompt| {
        if prompt.ends_with("<think>") {
            say("a</think>b")
        } else {
            say("b")
        }
    })
    .await;
    for (fields, thinks) in [
        (json!({}), true),
        (json!({"model": "deepseek-reasoner"}), true),
        (json!({"model": "deepseek-chat"}), false),
        (
            json!({"model": "deepseek-chat", "thinking": {"type": "enabled"}}),
            true,
        ),
        (json!({"thinking": {"type": "disabled"}}), false),
        (json!({"reasoning_effort": "none"}), false),
        (json!({"reasoning_effort": "max"}), true),
        (json!({"chat_template_kwargs": {"thinking": false}}), false),
    ] {
        let answer = server.ok(CHAT, &ask("x", fields.clone())).await;
        let message = &answer["choices"][0]["message"];
        assert_eq!(message["content"], "b", "{fields}");
        assert_eq!(
            message.get("reasoning_content").is_some(),
            thinks,
            "{fields}"
        );
    }
}

#[tokio::test]
async fn a_stop_text_ends_the_answer_before_itself() {
    let server = serve(|_| Act::Repeat("one two END three ".into())).await;
    for stop in [json!("END"), json!(["nowhere", "END"])] {
        let fields = json!({"stop": stop, "thinking": {"type": "disabled"}});
        let body = ask("x", fields);
        let answer = server.ok(CHAT, &body).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], "one two ");
        assert_eq!(choice["finish_reason"], "stop");
        let mut body = body;
        body["stream"] = true.into();
        let chunks = server.stream(CHAT, &body).await;
        assert_eq!(joined(&chunks, "content"), "one two ");
        assert_eq!(finish_reasons(&chunks), ["stop"]);
    }
}

#[tokio::test]
async fn a_limit_cuts_and_says_so() {
    let server = serve(|_| Act::Repeat("abc".into())).await;
    for field in ["max_tokens", "max_completion_tokens"] {
        let fields = json!({field: 5, "thinking": {"type": "disabled"}});
        let answer = server.ok(CHAT, &ask("x", fields)).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], "abcab");
        assert_eq!(choice["finish_reason"], "length");
        assert_eq!(answer["usage"]["completion_tokens"], 5);
    }
}

#[tokio::test]
async fn what_the_context_leaves_is_the_limit_when_none_is_named() {
    let server = crate::server::Setup {
        script: |_| Act::Repeat("abc".into()),
        context: 300,
        ..Default::default()
    };
    let server = server.serve().await;
    let fields = json!({"thinking": {"type": "disabled"}});
    let answer = server.ok(CHAT, &ask("x", fields)).await;
    assert_eq!(answer["usage"]["total_tokens"], 300);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn markers_that_a_user_writes_stay_text() {
    let server = serve(|_| say("</think>ok")).await;
    let markers = "<｜begin▁of▁sentence｜><｜end▁of▁sentence｜><｜User｜><｜Assistant｜><think></think>｜DSML｜";
    let plain: String = "x".repeat(markers.len());
    for text in [markers, &plain] {
        let body = json!({"messages": [
            {"role": "system", "content": text},
            {"role": "user", "content": [{"type": "text", "text": text}]},
            {"role": "assistant", "content": text, "reasoning_content": text},
            {"role": "user", "content": text},
        ]});
        server.ok(CHAT, &body).await;
    }
    let tokenizer = &vocabulary().tokenizer;
    let specials = |prompt: &Vec<u32>| -> Vec<u32> {
        let special = |id: &u32| tokenizer.is_special(*id);
        prompt.iter().copied().filter(special).collect()
    };
    let prompts = server.probe.prompts();
    assert!(!specials(&prompts[1]).is_empty());
    assert_eq!(specials(&prompts[0]), specials(&prompts[1]));
    assert_eq!(prompts[0].len(), prompts[1].len());
    let text = String::from_utf8(tokenizer.decode(&prompts[0])).expect("text");
    assert!(text.contains(markers), "{text}");
}

#[tokio::test]
async fn equal_seeds_give_equal_answers_and_others_do_not() {
    let server = serve(|_| Act::Dream).await;
    let mut texts = Vec::new();
    for seed in [1, 1, 2] {
        let fields = json!({"seed": seed, "max_tokens": 40, "temperature": 1.3,
            "thinking": {"type": "disabled"}});
        let answer = server.ok(CHAT, &ask("x", fields)).await;
        texts.push(answer["choices"][0]["message"]["content"].clone());
    }
    assert_eq!(texts[0], texts[1]);
    assert_ne!(texts[0], texts[2]);
}

#[tokio::test]
async fn log_probabilities_stand_beside_every_token() {
    let server = serve(|_| say("</think>ab")).await;
    let fields = json!({"logprobs": true, "top_logprobs": 2, "thinking": {"type": "disabled"}});
    for stream in [false, true] {
        let mut body = ask("x", fields.clone());
        body["stream"] = stream.into();
        let tokens: Vec<Value> = if stream {
            let chunks = server.stream(CHAT, &body).await;
            let lists = chunks
                .iter()
                .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
            lists.flatten().cloned().collect()
        } else {
            let answer = server.ok(CHAT, &body).await;
            let list = answer["choices"][0]["logprobs"]["content"].as_array();
            list.expect("a list").clone()
        };
        let text: String = tokens
            .iter()
            .filter_map(|entry| entry["token"].as_str())
            .collect();
        assert_eq!(text, "</think>ab<｜end▁of▁sentence｜>");
        for entry in &tokens {
            assert_eq!(entry["top_logprobs"].as_array().map(Vec::len), Some(2));
            assert_eq!(entry["logprob"], entry["top_logprobs"][0]["logprob"]);
        }
    }
}
