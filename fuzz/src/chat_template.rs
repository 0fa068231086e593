//! A client's texts and tools. Nothing that a client wrote is taken for the template's own text.

use ds4_coordinator::prompt::{Conversation, Dialect, Message, Thinking, Tool, render};

use crate::text_of;

/// Markers that only the template writes.
const SPECIAL: [&str; 3] = ["<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>"];

fn count(text: &str) -> usize {
    SPECIAL.iter().map(|name| text.matches(name).count()).sum()
}

/// The first byte's bits are thinking (1) and the preview dialect (2); then come a tool's definition
/// as JSON, a zero byte, and the text of every message.
pub fn run(data: &[u8]) -> bool {
    let Some((&flags, rest)) = data.split_first() else {
        return false;
    };
    let (thinking, preview) = (flags & 1 != 0, flags & 2 != 0);
    let (json, text) = text_of(rest).split_once('\0').unwrap_or_default();
    let parsed = serde_json::from_str(json).ok();
    let tool = parsed.and_then(|json| Tool::from_function(json).ok());
    let conversation = |text: &str| Conversation {
        messages: vec![
            Message::system(text),
            Message::user(text),
            Message::assistant(text),
            Message::tool(text, None),
            Message::user(text),
        ],
        tools: tool.clone().into_iter().collect(),
        thinking: if thinking {
            Thinking::On(None)
        } else {
            Thinking::Off
        },
        ..Conversation::default()
    };
    let dialect = if preview {
        Dialect::Preview
    } else {
        Dialect::V0731
    };
    let specials = |text: &str| {
        let prompt = render(&conversation(text), dialect).expect("plain JSON");
        let own = prompt.segments.iter().filter(|s| s.is_template());
        own.map(|s| count(&s.text)).sum::<usize>()
    };
    assert_eq!(specials(text), specials("x"));
    tool.is_some()
}
