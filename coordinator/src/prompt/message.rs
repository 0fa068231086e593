//! A conversation, independent of any API.
//!
//! The HTTP layer fills these types from a request; [`super::template`] turns them into prompt
//! text.

use serde_json::{Map, Value};
use thiserror::Error;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Instructions. All system messages are gathered at the head of the prompt.
    System {
        /// The instructions; an empty text is left out.
        content: String,
    },
    /// A turn of the user, joined with the turns of the user next to it.
    User {
        /// What the user wrote.
        content: String,
    },
    /// What the model answered in an earlier turn.
    Assistant {
        /// The visible answer.
        content: String,
        /// The reasoning that preceded it, if the client kept it.
        reasoning: Option<String>,
        /// The calls that the answer ended with.
        tool_calls: Vec<ToolCall>,
        /// Whether the model continues this message instead of starting a new one. Ignored except
        /// in the last message.
        prefix: bool,
    },
    /// The result of a tool call.
    Tool {
        /// What the tool returned.
        content: String,
        /// The `id` of the [`ToolCall`] that this answers.
        call_id: Option<String>,
    },
    /// A note that the model sees as the most recent one.
    LatestReminder {
        /// What the note says.
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
    /// Identifies the call, so that results can refer to it. Calls are rendered in the order of
    /// their ids.
    pub id: String,
    /// Name of the tool.
    pub name: String,
    /// The text of a JSON object; any other text is rendered as one string argument.
    pub arguments: String,
}

/// A tool that the model may call: its `name`, and maybe `description` and `parameters`.
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
    /// The description is not a string.
    #[error("the description of tool `{0}` must be a string")]
    Description(String),
    /// The parameters are not an object.
    #[error("the parameters of tool `{0}` must be an object (a JSON schema)")]
    Parameters(String),
}

impl Tool {
    /// Takes the `function` object of an OpenAI-style tool definition:
    /// `{"name", "description"?, "parameters"?}`. Other fields are kept.
    ///
    /// # Errors
    /// [`ToolError`] for the first field that is missing or of the wrong type.
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
            return Err(ToolError::Description(beginning(&name)));
        }
        if !matches!(
            function.get("parameters"),
            None | Some(Value::Null | Value::Object(_))
        ) {
            return Err(ToolError::Parameters(beginning(&name)));
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

    /// The three fields that the model sees, in this order, with defaults for missing ones.
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

/// As much of a client's name as an error shows.
fn beginning(name: &str) -> String {
    name.chars().take(64).collect()
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

/// The form of the answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ResponseFormat {
    /// Free text.
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that conforms to this schema.
    JsonSchema(Value),
}

/// How much the model reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Briefly.
    Low,
    /// Rendered as [`Effort::High`]: the models have no level between low and high.
    Medium,
    /// The usual effort.
    High,
    /// Rendered as [`Effort::High`].
    XHigh,
    /// As long as it takes.
    Max,
}

/// Whether the model reasons before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinking {
    /// The model answers at once.
    Off,
    /// The model reasons first, with the dialect's default effort unless one is given.
    On(Option<Effort>),
}

impl Default for Thinking {
    fn default() -> Self {
        Self::On(None)
    }
}

impl Thinking {
    /// The meaning of a `reasoning_effort` field: `none`, `minimal`, `low`, `medium`, `high`,
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

    /// Whether the model reasons first.
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
    /// Whether the model may, must or must not call them.
    pub tool_choice: ToolChoice,
    /// Whether the model reasons first, and how much.
    pub thinking: Thinking,
    /// The form of the answer.
    pub response_format: ResponseFormat,
}

impl Conversation {
    /// Whether the tools are shown to the model, so that its answer may contain calls.
    pub fn offers_tools(&self) -> bool {
        !self.tools.is_empty() && self.tool_choice != ToolChoice::None
    }
}
