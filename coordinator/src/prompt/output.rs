//! What the parser of answers is told and what it tells.

/// What the model writes first; the prompt decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Text without any structure: all of it is content.
    Plain,
    /// Reasoning; newlines at its beginning are dropped.
    Reasoning,
    /// The rest of a reasoning that the prompt began.
    ReasoningContinued,
    /// The answer; newlines at its beginning are dropped.
    Content,
    /// The rest of an answer that the prompt began.
    ContentContinued,
    /// Calls of a block that the prompt opened.
    ToolCalls,
}

/// A part of an answer. Neighbours of one kind belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputEvent {
    /// More reasoning.
    Reasoning(String),
    /// More of the answer.
    Content(String),
    /// A tool call begins.
    CallStart {
        /// Counts the calls of the answer from 0.
        index: usize,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments.
    CallArguments {
        /// The call.
        index: usize,
        /// The next piece of a JSON object's text.
        json: String,
    },
    /// A tool call is complete. Without this event its arguments are cut off, which leaves their
    /// JSON open, so that nobody takes it for the whole.
    CallEnd {
        /// The call.
        index: usize,
    },
}

/// Whether the model should go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// It should.
    Continue,
    /// A stop string was found; more text would be ignored.
    Stopped,
}

/// How the text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The model ended its turn, or a stop string was found.
    Stop,
    /// The limit of tokens was reached.
    Length,
}

/// Why the answer ended, in the words of the chat API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model had said everything, or a stop string was found.
    Stop,
    /// It was cut off.
    Length,
    /// It waits for the results of its calls.
    ToolCalls,
}

impl FinishReason {
    /// The name in the chat API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}
