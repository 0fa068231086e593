//! From a conversation to token ids, and from token ids back to an answer.
//!
//! ```text
//! Conversation ─ template ─► segments ─ tokenizer ─► ids … ids ─ stream_decoder ─► text ─ output_parser ─► events
//! ```
//!
//! Pure code: no I/O, no clock, no threads.

mod bpe;
mod byte_alphabet;
pub mod markers;
pub mod message;
pub mod output_parser;
mod pretokenize;
mod python_json;
pub mod segment;
mod special_matcher;
mod stop_filter;
pub mod stream_decoder;
mod tags;
pub mod template;
pub mod tokenizer;
mod unicode;

pub use message::{
    Conversation, Effort, Message, ResponseFormat, Thinking, Tool, ToolCall, ToolChoice, ToolError,
};
pub use output_parser::{Ended, FinishReason, OutputEvent, OutputParser, Progress, Start};
pub use segment::{Author, Segment};
pub use stream_decoder::StreamDecoder;
pub use template::{Dialect, Prompt, render};
pub use tokenizer::{ChatTokens, Tokenizer, TokenizerError};
