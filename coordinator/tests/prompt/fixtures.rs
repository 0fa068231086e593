//! Reads `tests/data/fixtures.json`.

use std::sync::LazyLock;

use ds4_coordinator::prompt::{
    Conversation, Effort, Message, ResponseFormat, Thinking, Tool, ToolCall, ToolChoice,
};
use serde_json::Value;

pub(crate) static FIXTURES: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../data/fixtures.json")).expect("the file is JSON")
});

pub(crate) fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    list(value, "ids")
        .iter()
        .map(|id| id.as_u64().expect("an id") as u32)
        .collect()
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

pub(crate) fn conversation(request: &Value) -> Conversation {
    let off = request["thinking"]["type"] == "disabled";
    Conversation {
        messages: list(request, "messages").iter().map(message).collect(),
        tools: list(request, "tools")
            .iter()
            .map(|tool| Tool::from_function(tool["function"].clone()).expect("a tool"))
            .collect(),
        tool_choice: match request["tool_choice"].as_str() {
            Some("required") => ToolChoice::Required,
            Some("none") => ToolChoice::None,
            _ => ToolChoice::Auto,
        },
        thinking: match request["reasoning_effort"].as_str() {
            _ if off => Thinking::Off,
            None => Thinking::On(None),
            Some(name) => Thinking::from_effort_name(name).expect("an effort"),
        },
        response_format: match request["response_format"]["type"].as_str() {
            Some("json_object") => ResponseFormat::JsonObject,
            _ => ResponseFormat::Text,
        },
    }
}

fn message(value: &Value) -> Message {
    let content = text(&value["content"]);
    match value["role"].as_str() {
        Some("system") => Message::System { content },
        Some("user") => Message::User { content },
        Some("latest_reminder") => Message::LatestReminder { content },
        Some("tool") => Message::Tool {
            content,
            call_id: value["tool_call_id"].as_str().map(str::to_owned),
        },
        Some("assistant") => Message::Assistant {
            content,
            reasoning: value["reasoning_content"].as_str().map(str::to_owned),
            tool_calls: list(value, "tool_calls").iter().map(call).collect(),
            prefix: false,
        },
        role => panic!("role {role:?}"),
    }
}

fn call(value: &Value) -> ToolCall {
    ToolCall {
        id: text(&value["id"]),
        name: text(&value["function"]["name"]),
        arguments: text(&value["function"]["arguments"]),
    }
}

#[test]
fn efforts_have_names() {
    assert_eq!(
        Thinking::from_effort_name("xhigh"),
        Some(Thinking::On(Some(Effort::XHigh)))
    );
    assert_eq!(Thinking::from_effort_name("none"), Some(Thinking::Off));
    assert_eq!(Thinking::from_effort_name("much"), None);
}
