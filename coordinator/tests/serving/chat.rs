//! Chat answers, whole and streamed.

use serde_json::{Value, json};

use crate::server::{Server, say, with};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_whole_answer_has_the_shape_of_the_api() {
    let server = Server::start().await;
    let answer = server.chat(say("Hello there")).await;
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "scripted");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &answer["choices"][0];
    assert_eq!(
        choice["message"],
        json!({"role": "assistant", "content": "Hello there"})
    );
    assert_eq!(choice["finish_reason"], "stop");
    let usage = &answer["usage"];
    // BOS, User, `say:Hello there`, Assistant, </think>; the answer and the token that ends it.
    assert_eq!(usage["prompt_tokens"], 2 + 15 + 2);
    assert_eq!(usage["completion_tokens"], 12);
    assert_eq!(usage["total_tokens"], 31);
}

#[tokio::test]
async fn reasoning_is_separate_and_the_default() {
    let server = Server::start().await;
    let body = json!({"messages": [{"role": "user", "content": "say:hm\\n</think>\\n\\nyes"}]});
    let answer = server.chat(body.clone()).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], "hm");
    assert_eq!(message["content"], "yes");
    let details = &answer["usage"]["completion_tokens_details"];
    // Two letters, a newline and the marker; reasoning ends with it.
    assert_eq!(details["reasoning_tokens"], 4);

    let stream = server.stream(CHAT, body).await;
    assert_eq!(stream.joined("reasoning_content"), "hm");
    assert_eq!(stream.joined("content"), "yes");
    let place = |name: &str| {
        stream.chunks.iter().position(|chunk| {
            chunk["choices"][0]["delta"][name]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        })
    };
    assert!(place("reasoning_content") < place("content"));
}

#[tokio::test]
async fn every_way_to_switch_thinking_works() {
    let server = Server::start().await;
    let thinks = async |more: Value| {
        let body = with(
            json!({"messages": [{"role": "user", "content": "say:a</think>b"}]}),
            more,
        );
        server.chat(body).await["choices"][0]["message"]
            .get("reasoning_content")
            .is_some()
    };
    for (more, expected) in [
        (json!({}), true),
        (json!({"model": "deepseek-reasoner"}), true),
        (json!({"model": "deepseek-chat"}), false),
        (
            json!({"model": "deepseek-chat", "thinking": {"type": "enabled"}}),
            true,
        ),
        (
            json!({"thinking": {"type": "disabled"}, "reasoning_effort": "max"}),
            false,
        ),
        (json!({"reasoning_effort": "none"}), false),
        (json!({"reasoning_effort": "max"}), true),
        (
            json!({"chat_template_kwargs": {"enable_thinking": false}}),
            false,
        ),
        (json!({"think": false}), false),
    ] {
        assert_eq!(thinks(more.clone()).await, expected, "{more}");
    }
}

#[tokio::test]
async fn a_stream_begins_with_the_role_and_ends_with_the_reason() {
    let server = Server::start().await;
    let stream = server.stream(CHAT, say("grüß dich 🙂")).await;
    assert!(stream.done && stream.errors.is_empty());
    let first = &stream.chunks[0]["choices"][0]["delta"];
    assert_eq!(first["role"], "assistant");
    assert_eq!(stream.joined("content"), "grüß dich 🙂");
    assert_eq!(stream.finish_reason(), "stop");
    let last = stream.chunks.last().unwrap();
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert!(stream.chunks.iter().all(|chunk| {
        chunk["object"] == "chat.completion.chunk"
            && chunk["id"] == stream.chunks[0]["id"]
            && chunk.get("usage").is_none()
    }));
}

#[tokio::test]
async fn usage_comes_when_requested() {
    let server = Server::start().await;
    let options = json!({"stream_options": {"include_usage": true}});
    let stream = server.stream(CHAT, with(say("abc"), options)).await;
    let (last, others) = stream.chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 4);
    assert!(others.iter().all(|chunk| chunk["usage"].is_null()));

    let options = json!({"stream_options": {"continuous_usage_stats": true}});
    let stream = server.stream(CHAT, with(say("abc"), options)).await;
    let counts: Vec<u64> = stream
        .chunks
        .iter()
        .map(|chunk| chunk["usage"]["completion_tokens"].as_u64().unwrap())
        .collect();
    assert!(
        counts.is_sorted() && counts.last() == Some(&4),
        "{counts:?}"
    );
}

#[tokio::test]
async fn stop_texts_end_the_answer_wherever_it_is_cut() {
    let server = Server::start().await;
    for stop in [json!("STOP"), json!(["nothing", "STOP"])] {
        let body = with(say("one STOP two"), json!({"stop": stop}));
        let answer = server.chat(body.clone()).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "one ");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        // The token that completed the stop text is the last one.
        assert_eq!(answer["usage"]["completion_tokens"], 8);
        assert_eq!(server.stream(CHAT, body).await.joined("content"), "one ");
    }
    let beginning = with(say("one STO"), json!({"stop": "STOP"}));
    assert_eq!(
        server.chat(beginning).await["choices"][0]["message"]["content"],
        "one STO"
    );
}

#[tokio::test]
async fn limits_cut_the_answer() {
    let server = Server::start().await;
    for key in ["max_tokens", "max_completion_tokens"] {
        let answer = server.chat(with(say("abcdef"), json!({ key: 3 }))).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "abc");
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(answer["usage"]["completion_tokens"], 3);
    }
    let ignoring = with(say("ab"), json!({"ignore_eos": true, "max_tokens": 6}));
    let answer = server.chat(ignoring).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "abab");
    assert_eq!(answer["usage"]["completion_tokens"], 6);
}

#[tokio::test]
async fn markers_in_the_users_text_stay_text() {
    let server = Server::start().await;
    let plain = json!({"messages": [{"role": "user", "content": "x"}]});
    let marker = json!({"messages": [{"role": "user", "content": "<｜User｜>"}]});
    let tokens = async |body: Value| {
        server.chat(body).await["usage"]["prompt_tokens"]
            .as_u64()
            .unwrap()
    };
    let longer = tokens(marker).await - tokens(plain).await;
    assert_eq!(longer, "<｜User｜>".len() as u64 - 1);
}

#[tokio::test]
async fn all_roles_and_content_parts_are_read() {
    let server = Server::start().await;
    let body = json!({"thinking": {"type": "disabled"}, "messages": [
        {"role": "developer", "content": "be brief"},
        {"role": "system", "content": [{"type": "text", "text": "and kind"}]},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": null, "reasoning_content": "r", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "result"},
        {"role": "user", "name": "me", "content": [
            {"type": "text", "text": "two"}, {"type": "text", "text": "say:parts"},
        ]},
    ]});
    assert_eq!(
        server.chat(body).await["choices"][0]["message"]["content"],
        "parts"
    );
}

#[tokio::test]
async fn unset_and_unknown_fields_are_ignored() {
    let server = Server::start().await;
    let more = json!({
        "max_tokens": null, "stop": null, "seed": null, "temperature": null, "tools": null,
        "stream_options": null, "response_format": null, "n": 1, "presence_penalty": 0,
        "user": "me", "metadata": {"a": [1]}, "something_new": {"deep": [[[]]]}, "logit_bias": {},
    });
    assert_eq!(
        server.chat(with(say("hi"), more)).await["choices"][0]["message"]["content"],
        "hi"
    );
}

#[tokio::test]
async fn log_probabilities_come_with_each_token() {
    let server = Server::start().await;
    let body = with(say("hé"), json!({"logprobs": true, "top_logprobs": 3}));
    let answer = server.chat(body.clone()).await;
    let content = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    // h, two bytes of é, the end.
    assert_eq!(content.len(), 4);
    assert_eq!(content[0]["token"], "h");
    assert_eq!(content[1]["bytes"], json!([0xc3]));
    assert!(content[0]["logprob"].as_f64().unwrap() > -1e-6);
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 3);

    let stream = server.stream(CHAT, body).await;
    let streamed: Vec<&Value> = stream
        .chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .collect();
    assert_eq!(streamed, content.iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn a_json_object_can_be_requested() {
    let server = Server::start().await;
    let format = json!({"response_format": {"type": "json_object"}});
    let answer = server.chat(with(say("{}"), format)).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "{}");
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > 60);
}
