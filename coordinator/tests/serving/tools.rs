//! Tool calls out of the model, and the rules around them.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::server::{Server, with};

const CHAT: &str = "/v1/chat/completions";
const CALLS: &str = "Looking.\\n\\n<｜DSML｜tool_calls>\\n<｜DSML｜invoke name=\"weather\">\\n\
    <｜DSML｜parameter name=\"city\" string=\"true\">Køln \"x\"</｜DSML｜parameter>\\n\
    <｜DSML｜parameter name=\"days\" string=\"false\">2</｜DSML｜parameter>\\n</｜DSML｜invoke>\\n\
    <｜DSML｜invoke name=\"clock\">\\n</｜DSML｜invoke>\\n</｜DSML｜tool_calls>";

fn tools() -> Value {
    let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
    json!([tool("weather"), tool("clock")])
}

fn ask() -> Value {
    json!({
        "messages": [{"role": "user", "content": format!("say:{CALLS}")}],
        "thinking": {"type": "disabled"},
        "tools": tools(),
    })
}

fn check_calls(calls: &[(String, String, String)]) {
    let names: Vec<&str> = calls.iter().map(|(_, name, _)| name.as_str()).collect();
    assert_eq!(names, ["weather", "clock"]);
    let arguments = |i: usize| serde_json::from_str::<Value>(&calls[i].2).unwrap();
    assert_eq!(arguments(0), json!({"city": "Køln \"x\"", "days": 2}));
    assert_eq!(arguments(1), json!({}));
    // Prompts order calls by their ids.
    assert!(calls[0].0 < calls[1].0 && calls[0].0.starts_with("call_"));
}

#[tokio::test]
async fn calls_come_whole() {
    let server = Server::start().await;
    let answer = server.chat(ask()).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "Looking.");
    let text =
        |call: &Value, pointer: &str| call.pointer(pointer).unwrap().as_str().unwrap().into();
    let calls: Vec<_> = choice["message"]["tool_calls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| {
            assert_eq!(call["type"], "function");
            (
                text(call, "/id"),
                text(call, "/function/name"),
                text(call, "/function/arguments"),
            )
        })
        .collect();
    check_calls(&calls);
}

#[tokio::test]
async fn calls_come_in_pieces() {
    let server = Server::start().await;
    let stream = server.stream(CHAT, ask()).await;
    assert_eq!(stream.joined("content"), "Looking.");
    assert_eq!(stream.finish_reason(), "tool_calls");
    let mut calls: Vec<(String, String, String)> = Vec::new();
    for chunk in &stream.chunks {
        for call in chunk["choices"][0]["delta"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let index = call["index"].as_u64().unwrap() as usize;
            if let Some(id) = call["id"].as_str() {
                assert_eq!(index, calls.len(), "calls begin in order");
                let name = call["function"]["name"].as_str().unwrap();
                calls.push((id.to_owned(), name.to_owned(), String::new()));
            }
            calls[index]
                .2
                .push_str(call["function"]["arguments"].as_str().unwrap());
        }
    }
    check_calls(&calls);
}

#[tokio::test]
async fn calls_are_text_when_no_tools_are_offered() {
    let server = Server::start().await;
    for more in [json!({"tools": []}), json!({"tool_choice": "none"})] {
        let answer = server.chat(with(ask(), more)).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "stop");
        assert!(choice["message"].get("tool_calls").is_none());
        assert!(
            choice["message"]["content"]
                .as_str()
                .unwrap()
                .contains("invoke name")
        );
    }
}

#[tokio::test]
async fn a_required_call_is_opened_for_the_model() {
    let server = Server::start().await;
    let inside = "<｜DSML｜invoke name=\"clock\">\\n</｜DSML｜invoke>\\n</｜DSML｜tool_calls>";
    let named = json!({"type": "function", "function": {"name": "clock"}});
    for choice in [json!("required"), named] {
        let body = json!({
            "messages": [{"role": "user", "content": format!("say:{inside}")}],
            "tools": tools(),
            "tool_choice": choice,
        });
        // The prompt ends with the opening tag, which is not part of the script.
        let answer = server.chat(body).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
        assert_eq!(
            choice["message"]["tool_calls"][0]["function"]["name"],
            "clock"
        );
        assert_eq!(choice["message"]["content"], Value::Null);
    }
}

#[tokio::test]
async fn impossible_choices_are_refused() {
    let server = Server::start().await;
    let unknown = json!({"type": "function", "function": {"name": "nothing"}});
    for (more, param) in [
        (
            json!({"tool_choice": "required", "tools": []}),
            "tool_choice",
        ),
        (json!({"tool_choice": "sometimes"}), "tool_choice"),
        (json!({"tool_choice": unknown}), "tool_choice"),
        (
            json!({"tool_choice": "required", "thinking": {"type": "enabled"}}),
            "tool_choice",
        ),
        (json!({"tools": [{"type": "retrieval"}]}), "tools[0].type"),
        (
            json!({"tools": [{"type": "function", "function": {}}]}),
            "tools[0].function",
        ),
        (json!({"functions": [{"name": "f"}]}), "functions"),
    ] {
        let response = server.post(CHAT, &with(ask(), more.clone())).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{more}");
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"]["param"], param, "{body}");
    }
}
