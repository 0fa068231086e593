//! Tool calls out of answers and into prompts.

use serde_json::{Value, json};

use crate::script::{Act, say};
use crate::server::{CHAT, serve};

const CALLS: &str = concat!(
    "looking</think>One moment.\n\n<｜DSML｜tool_calls>\n",
    "<｜DSML｜invoke name=\"weather\">\n",
    "<｜DSML｜parameter name=\"city\" string=\"true\">Köln \"am\" Rhein</｜DSML｜parameter>\n",
    "<｜DSML｜parameter name=\"days\" string=\"false\">3</｜DSML｜parameter>\n",
    "</｜DSML｜invoke>\n",
    "<｜DSML｜invoke name=\"time\">\n</｜DSML｜invoke>\n",
    "</｜DSML｜tool_calls>"
);

fn calls(_: &str) -> Act {
    say(CALLS)
}

fn body(more: Value) -> Value {
    let tool = |name: &str| {
        let parameters = json!({"type": "object", "properties": {}});
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    };
    let mut body = json!({
        "messages": [{"role": "user", "content": "How is the weather?"}],
        "tools": [tool("weather"), tool("time")],
    });
    let fields = body.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    body
}

fn arguments(call: &Value) -> Value {
    let text = call["function"]["arguments"].as_str().expect("a string");
    serde_json::from_str(text).expect("the arguments are JSON")
}

#[tokio::test]
async fn calls_come_apart_from_content_with_json_arguments() {
    let server = serve(calls).await;
    let answer = server.ok(CHAT, &body(json!({}))).await;
    let choice = &answer["choices"][0];
    let message = &choice["message"];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(message["content"], "One moment.");
    assert_eq!(message["reasoning_content"], "looking");
    let calls = message["tool_calls"].as_array().expect("calls");
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[0]["type"], "function");
    assert_eq!(calls[0]["function"]["name"], "weather");
    assert_eq!(
        arguments(&calls[0]),
        json!({"city": "Köln \"am\" Rhein", "days": 3})
    );
    assert_eq!(calls[1]["function"]["name"], "time");
    assert_eq!(arguments(&calls[1]), json!({}));
    assert_ne!(calls[0]["id"], calls[1]["id"]);
}

#[tokio::test]
async fn streamed_calls_add_up_to_the_same() {
    let server = serve(calls).await;
    let chunks = server.stream(CHAT, &body(json!({"stream": true}))).await;
    let mut names = Vec::new();
    let mut texts = vec![String::new(); 2];
    for chunk in &chunks {
        for call in chunk["choices"][0]["delta"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let index = call["index"].as_u64().expect("an index") as usize;
            if let Some(name) = call["function"]["name"].as_str() {
                assert!(call["id"].is_string());
                assert_eq!(index, names.len());
                names.push(name.to_owned());
            }
            texts[index] += call["function"]["arguments"].as_str().expect("a piece");
        }
    }
    assert_eq!(names, ["weather", "time"]);
    assert_eq!(texts, [r#"{"city": "Köln \"am\" Rhein", "days": 3}"#, "{}"]);
    let last = chunks.last().expect("chunks");
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn without_tools_on_offer_nothing_is_a_call() {
    let server = serve(|_| say("<｜DSML｜tool_calls>\n</｜DSML｜tool_calls>")).await;
    let fields = json!({"tools": null, "thinking": {"type": "disabled"}});
    let answer = server.ok(CHAT, &body(fields)).await;
    let message = &answer["choices"][0]["message"];
    assert!(message.get("tool_calls").is_none());
    assert_eq!(
        message["content"],
        "<｜DSML｜tool_calls>\n</｜DSML｜tool_calls>"
    );
}

#[tokio::test]
async fn a_required_call_is_begun_by_the_prompt() {
    let server = serve(|prompt| {
        assert!(
            prompt.trim_end().ends_with("<｜DSML｜tool_calls>"),
            "{prompt}"
        );
        assert!(prompt.contains("\"time\""));
        assert!(!prompt.contains("\"weather\""));
        say("<｜DSML｜invoke name=\"time\">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>")
    })
    .await;
    let choice = json!({"type": "function", "function": {"name": "time"}});
    let answer = server.ok(CHAT, &body(json!({"tool_choice": choice}))).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], Value::Null);
    assert_eq!(
        choice["message"]["tool_calls"][0]["function"]["name"],
        "time"
    );
}

#[tokio::test]
async fn calls_and_results_of_earlier_turns_reach_the_prompt() {
    let server = serve(|prompt| {
        let call = prompt
            .find("<｜DSML｜invoke name=\"weather\">")
            .expect("the call");
        let result = prompt.find("sunny").expect("the result");
        assert!(call < result);
        say("</think>It is sunny.")
    })
    .await;
    let mut body = body(json!({}));
    let history = json!([
        {"role": "user", "content": "How is the weather?"},
        {"role": "assistant", "content": null, "tool_calls": [{
            "id": "call_1", "type": "function",
            "function": {"name": "weather", "arguments": "{\"city\": \"Köln\"}"},
        }]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]);
    body["messages"] = history;
    let answer = server.ok(CHAT, &body).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "It is sunny.");
}
