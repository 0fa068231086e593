//! Whatever JSON comes, the server answers and lives on.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use crate::script::say;
use crate::server::{CHAT, COMPLETIONS, Server, serve};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));
static SERVER: LazyLock<Server> = LazyLock::new(|| RUNTIME.block_on(serve(|_| say("</think>ok"))));

const KEYS: [&str; 42] = [
    "model",
    "messages",
    "prompt",
    "role",
    "content",
    "reasoning_content",
    "prefix",
    "tool_calls",
    "tool_call_id",
    "tools",
    "tool_choice",
    "type",
    "function",
    "name",
    "arguments",
    "parameters",
    "description",
    "stream",
    "stream_options",
    "include_usage",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "n",
    "best_of",
    "echo",
    "suffix",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "thinking",
    "reasoning_effort",
    "response_format",
    "chat_template_kwargs",
    "ignore_eos",
    "text",
    "id",
];

const WORDS: [&str; 20] = [
    "",
    "user",
    "assistant",
    "system",
    "tool",
    "developer",
    "latest_reminder",
    "function",
    "text",
    "auto",
    "none",
    "required",
    "enabled",
    "disabled",
    "json_object",
    "scripted",
    "deepseek-chat",
    "<｜User｜>",
    "{\"a\": [1, 2]}",
    "\u{0}\u{fffd}🦀",
];

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..70).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0.0..2.0f64).prop_map(Value::from),
        prop::sample::select(&WORDS[..]).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ]
}

fn object(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        9 => prop::sample::select(&KEYS[..]).prop_map(str::to_owned),
        1 => ".{0,6}",
    ];
    prop::collection::vec((key, value), 0..6)
        .prop_map(|fields| Value::Object(fields.into_iter().collect()))
}

fn value() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            object(inner),
        ]
    })
}

fn message() -> impl Strategy<Value = Value> {
    let role = prop::sample::select(&WORDS[1..7]);
    (role, value(), object(value())).prop_map(|(role, content, more)| {
        let mut message = json!({"role": role, "content": content});
        extend(&mut message, more);
        message
    })
}

fn extend(object: &mut Value, more: Value) {
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        let mut more: Map<String, Value> = more;
        more.retain(|key, _| !object.contains_key(key));
        object.extend(more);
    }
}

/// Bodies that are right but for a field or two, so that all of the code is reached.
fn body() -> impl Strategy<Value = Value> {
    let sound = json!({"role": "user", "content": "x"});
    let message = prop_oneof![2 => Just(sound), 1 => message()];
    let chat = (prop::collection::vec(message, 1..4), object(value())).prop_map(|(list, more)| {
        let mut body = json!({"messages": list, "prompt": "x"});
        extend(&mut body, more);
        body
    });
    prop_oneof![2 => chat, 1 => object(value()), 1 => value()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_body_is_answered(body in body()) {
        let server = &*SERVER;
        RUNTIME.block_on(async {
            for path in [CHAT, COMPLETIONS] {
                let response = server.post(path, &body).await;
                let status = response.status().as_u16();
                let text = response.text().await.expect("a body");
                assert!(
                    status == 200 || (400..500).contains(&status),
                    "{path} {body} gave {status}: {text}"
                );
            }
            assert_eq!(server.get("/health").await.status(), 200);
        });
    }
}
