//! What a client wrote is never taken for the template's own text.
#![no_main]

use ds4_coordinator::prompt::{Conversation, Dialect, Message, Thinking, Tool, render};
use libfuzzer_sys::fuzz_target;

/// Written by nobody but the template.
const SPECIAL: [&str; 3] = ["<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>"];

fn count(text: &str) -> usize {
    SPECIAL.iter().map(|name| text.matches(name).count()).sum()
}

fuzz_target!(|input: (&str, &str, bool, bool)| {
    let (json, text, thinking, preview) = input;
    let tool = serde_json::from_str(json).ok();
    let tools = tool.and_then(|json| Tool::from_function(json).ok());
    let conversation = |text: &str| Conversation {
        messages: vec![
            Message::system(text),
            Message::user(text),
            Message::assistant(text),
            Message::tool(text, None),
            Message::user(text),
        ],
        tools: tools.clone().into_iter().collect(),
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
});
