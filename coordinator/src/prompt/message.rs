//! What a conversation is made of, free of any wire format.
//!
//! The HTTP layer fills these types from a request; [`super::template`] turns them into prompt
//! text. Nothing here is specific to one API.

use serde_json::{Map, Value};
use thiserror::Error;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Instructions. All system messages are gathered at the head of the prompt.
    System {
        /// The text.
        content: String,
    },
    /// What the user said.
    User {
        /// The text.
        content: String,
    },
    /// What the model answered in an earlier turn.
    Assistant {
        /// The visible answer.
        content: String,
        /// The reasoning that preceded it, if the client kept it.
        reasoning: Option<String>,
        /// The tools it called.
        tool_calls: Vec<ToolCall>,
        /// The model shall continue this message instead of starting a new one. Only heeded on
        /// the last message.
        prefix: bool,
    },
    /// The result of a tool call.
    Tool {
        /// The text that the tool returned.
        content: String,
        /// The id of the call that this answers.
        call_id: Option<String>,
    },
    /// A note that the model shall see as the newest one.
    LatestReminder {
        /// The text.
        content: String,
    },
}

impl Message {
    /// A system message.
    pub fn system(content: impl Into<String>) -> Self {
        Self::System {
            content: content.into(),
        }
    }

    /// A user message.
    pub fn user(content: impl Into<String>) -> Self {
        Self::User {
            content: content.into(),
        }
    }

    /// A finished assistant message without reasoning and calls.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::Assistant {
            content: content.into(),
            reasoning: None,
            tool_calls: Vec::new(),
            prefix: false,
        }
    }

    /// A tool result.
    pub fn tool(content: impl Into<String>, call_id: Option<String>) -> Self {
        Self::Tool {
            content: content.into(),
            call_id,
        }
    }
}

/// A tool call of an earlier assistant message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// Names the call, so that results find it. Calls are rendered in the order of their ids.
    pub id: String,
    /// The tool.
    pub name: String,
    /// A JSON object as text. Anything else is rendered as one string argument.
    pub arguments: String,
}

/// A tool that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    function: Map<String, Value>,
}

/// Why a tool definition was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ToolError {
    /// The definition is not a JSON object.
    #[error("a tool's `function` must be an object")]
    NotAnObject,
    /// The name is missing, not a string, or empty.
    #[error("a tool's `function.name` must be a non-empty string")]
    Name,
    /// The description is there and not a string.
    #[error("the description of tool `{0}` must be a string")]
    Description(String),
    /// The parameters are there and not an object.
    #[error("the parameters of tool `{0}` must be an object (a JSON schema)")]
    Parameters(String),
}

impl Tool {
    /// Takes the `function` object of an OpenAI-style tool definition:
    /// `{"name", "description"?, "parameters"?}`. Other fields are kept.
    pub fn from_function(function: Value) -> Result<Self, ToolError> {
        let Value::Object(function) = function else {
            return Err(ToolError::NotAnObject);
        };
        let name = match function.get("name") {
            Some(Value::String(name)) if !name.is_empty() => name.clone(),
            _ => return Err(ToolError::Name),
        };
        if !matches!(
            function.get("description"),
            None | Some(Value::Null | Value::String(_))
        ) {
            return Err(ToolError::Description(name));
        }
        if !matches!(
            function.get("parameters"),
            None | Some(Value::Null | Value::Object(_))
        ) {
            return Err(ToolError::Parameters(name));
        }
        Ok(Self { function })
    }

    /// The name by which the model calls it.
    pub fn name(&self) -> &str {
        self.function
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// The three fields that the model is shown, in that order, with defaults for missing ones.
    pub(super) fn essentials(&self) -> Value {
        let field = |key: &str, default: Value| match self.function.get(key) {
            None | Some(Value::Null) => default,
            Some(value) => value.clone(),
        };
        serde_json::json!({
            "name": field("name", Value::Null),
            "description": field("description", Value::String(String::new())),
            "parameters": field("parameters", Value::Object(Map::new())),
        })
    }

    /// The definition as the client gave it.
    pub(super) fn as_given(&self) -> &Map<String, Value> {
        &self.function
    }
}

/// Whether the model may, must or must not call tools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// The tools are not shown to the model.
    None,
    /// The answer starts inside a block of calls. Without effect in thinking mode, where the
    /// reasoning must come first.
    Required,
}

/// The shape that the answer shall have.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ResponseFormat {
    /// Free text.
    #[default]
    Text,
    /// Some JSON object.
    JsonObject,
    /// JSON that follows this schema.
    JsonSchema(Value),
}

/// How hard the model shall think.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Briefly.
    Low,
    /// Between low and high; the models know no such step and take it as [`Effort::High`].
    Medium,
    /// The usual effort.
    High,
    /// As [`Effort::High`].
    XHigh,
    /// As long as it takes.
    Max,
}

/// Whether the model reasons before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinking {
    /// It answers at once.
    Off,
    /// It reasons first. Without an effort the dialect's default holds.
    On(Option<Effort>),
}

impl Default for Thinking {
    fn default() -> Self {
        Self::On(None)
    }
}

impl Thinking {
    /// Reads the value of a `reasoning_effort` field: `none`, `minimal`, `low`, `medium`, `high`,
    /// `xhigh` or `max`; any other name gives `None`.
    pub fn from_effort_name(name: &str) -> Option<Self> {
        Some(match name {
            "none" => Self::Off,
            "minimal" | "low" => Self::On(Some(Effort::Low)),
            "medium" => Self::On(Some(Effort::Medium)),
            "high" => Self::On(Some(Effort::High)),
            "xhigh" => Self::On(Some(Effort::XHigh)),
            "max" => Self::On(Some(Effort::Max)),
            _ => return None,
        })
    }

    /// Whether it is on.
    pub fn is_on(self) -> bool {
        matches!(self, Self::On(_))
    }
}

/// Everything that a chat prompt depends on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// The messages, oldest first.
    pub messages: Vec<Message>,
    /// The tools on offer.
    pub tools: Vec<Tool>,
    /// Whether they may be called.
    pub tool_choice: ToolChoice,
    /// Whether and how hard the model thinks.
    pub thinking: Thinking,
    /// The shape of the answer.
    pub response_format: ResponseFormat,
}

impl Conversation {
    /// Whether the tools are shown to the model, and therefore looked for in its answer.
    pub fn offers_tools(&self) -> bool {
        !self.tools.is_empty() && self.tool_choice != ToolChoice::None
    }
}
