//! What goes into the parser of answers and what comes out of it.

/// What the model writes first, as the prompt left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerStart {
    /// Plain completion: all text is content, without any markers.
    Plain,
    /// Reasoning. Newlines at its beginning are dropped.
    Reasoning,
    /// The rest of the reasoning, which the prompt began.
    ReasoningContinued,
    /// The content of the answer. Newlines at its beginning are dropped.
    Content,
    /// The rest of the content, which the prompt began.
    ContentContinued,
    /// Tool calls, in a block that the prompt opened.
    ToolCalls,
}

/// A part of an answer. Successive events of one kind continue the same text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputEvent {
    /// More text of the reasoning.
    Reasoning(String),
    /// More text of the content.
    Content(String),
    /// A tool call begins.
    CallStart {
        /// Position among the answer's calls, from 0.
        index: usize,
        /// Name of the tool.
        name: String,
    },
    /// More text of a call's arguments.
    CallArguments {
        /// Position among the answer's calls, from 0.
        index: usize,
        /// The next part of the text of a JSON object.
        json: String,
    },
    /// A tool call is complete. Without this event its arguments were cut off: their JSON stays
    /// open, so that it cannot be mistaken for complete arguments.
    CallEnd {
        /// Position among the answer's calls, from 0.
        index: usize,
    },
}

/// Whether the model should generate more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Continuation {
    /// The answer goes on.
    Continue,
    /// A stop string was found; further text would be ignored.
    Stopped,
}

/// Why no more text comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The model ended its turn, or a stop string was found.
    Stop,
    /// The token limit was reached.
    Length,
}

/// Why the answer ended, as the chat API distinguishes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its turn, or a stop string was found.
    Stop,
    /// The token limit was reached.
    Length,
    /// The model waits for the results of its tool calls.
    ToolCalls,
}

impl FinishReason {
    /// The value of `finish_reason` in the chat API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}
