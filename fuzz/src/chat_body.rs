//! The body of a chat request. What is accepted has texts no longer than the body, and becomes a
//! prompt; what is refused says why, in short.

use ds4_coordinator::http::read_chat_body;
use ds4_coordinator::prompt::{Dialect, Message, render};

use crate::check_refusal;

/// The bytes are the body.
pub fn run(data: &[u8]) -> bool {
    let conversation = match read_chat_body(data) {
        Ok(conversation) => conversation,
        Err(error) => {
            check_refusal(&error);
            return false;
        }
    };
    let text = |message: &Message| match message {
        Message::System { content }
        | Message::User { content }
        | Message::Tool { content, .. }
        | Message::LatestReminder { content } => content.len(),
        Message::Assistant {
            content, reasoning, ..
        } => content.len() + reasoning.as_ref().map_or(0, String::len),
    };
    let texts: usize = conversation.messages.iter().map(text).sum();
    assert!(texts <= data.len());
    assert!(!conversation.messages.is_empty());
    render(&conversation, Dialect::default()).expect("plain JSON");
    true
}
