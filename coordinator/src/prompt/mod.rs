//! From a conversation to token ids, and from generated token ids to an answer.
//!
//! ```text
//! Conversation ─ template ─► segments ─ tokenizer ─► ids
//! ids ─ tokenizer, stream_decoder ─► text ─ output_parser ─► reasoning, content, calls
//! ```
//!
//! Pure functions and state machines: no I/O, no clock, no threads.

mod bpe;
mod byte_alphabet;
mod encoder;
pub mod markers;
pub mod message;
pub mod output;
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

pub use encoder::{EncodeError, EncodeLimits};
pub use message::{
    Conversation, Effort, Message, ResponseFormat, Thinking, Tool, ToolCall, ToolChoice, ToolError,
};
pub use output::{AnswerStart, Continuation, Ended, FinishReason, OutputEvent};
pub use output_parser::OutputParser;
pub use segment::{Author, Segment};
pub use stream_decoder::StreamDecoder;
pub use template::{Dialect, RenderedPrompt, render};
pub use tokenizer::{ChatTokens, Tokenizer, TokenizerError};
