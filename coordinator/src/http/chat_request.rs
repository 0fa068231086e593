//! The body of `/v1/chat/completions`, checked.

use std::borrow::Cow;

use super::app::thinks_by_default;
use super::body;
use super::error::{ApiError, shortened};
use super::fields::{Field, Object};
use super::json_slices::Kind;
use super::messages::read_messages;
use super::options::{MAX_TOP_LOGPROBS, Options};
use crate::prompt::{Conversation, ResponseFormat, Thinking, Tool, ToolChoice};

/// Tools that one request may offer.
const MAX_TOOLS: usize = 1024;
/// Values that the definitions of all tools may have together.
const MAX_TOOL_VALUES: usize = 65_536;

/// A checked chat request.
#[derive(Debug)]
pub(super) struct ChatRequest {
    pub(super) model: Option<String>,
    pub(super) conversation: Conversation,
    pub(super) logprobs: Option<usize>,
    pub(super) options: Options,
}

impl ChatRequest {
    /// Reads the body. `default_thinking` gets the model's name, because some names imply whether
    /// the model thinks.
    pub(super) fn read(
        body: &str,
        default_thinking: impl Fn(Option<&str>) -> bool,
    ) -> Result<Self, ApiError> {
        let body = Object::root(body)?;
        let model = body.str("model")?.map(Cow::into_owned);
        let options = Options::read(&body)?;
        let mut tools = read_tools(&body)?;
        let tool_choice = read_tool_choice(&body, &mut tools)?;
        let requested = read_thinking(&body)?;
        let thinking = match requested {
            Some(thinking) => thinking,
            // Reasoning would precede the required call.
            None if tool_choice == ToolChoice::Required => Thinking::Off,
            None if default_thinking(model.as_deref()) => Thinking::On(None),
            None => Thinking::Off,
        };
        if tool_choice == ToolChoice::Required && thinking.is_on() {
            let message =
                "a required tool call cannot be combined with thinking: turn one of them off";
            return Err(ApiError::unsupported("tool_choice", message));
        }
        Ok(ChatRequest {
            model,
            conversation: Conversation {
                messages: read_messages(&body)?,
                tools,
                tool_choice,
                thinking,
                response_format: read_response_format(&body)?,
            },
            logprobs: read_logprobs(&body)?,
            options,
        })
    }
}

/// Reads the bytes of a chat request's body as the server does, for fuzzing.
///
/// # Errors
/// The error that a client would get.
pub fn read_chat_body(bytes: &[u8]) -> Result<Conversation, ApiError> {
    let request = ChatRequest::read(body::text(bytes)?, thinks_by_default)?;
    Ok(request.conversation)
}

fn read_tools(body: &Object<'_>) -> Result<Vec<Tool>, ApiError> {
    if let Some(functions) = body.get("functions") {
        if functions.kind() != Kind::List {
            return Err(functions.wrong("a list"));
        }
        if !functions.is_empty() {
            return Err(ApiError::unsupported(
                "functions",
                "`functions` is not supported: use `tools`",
            ));
        }
    }
    let Some(tools) = body.get("tools") else {
        return Ok(Vec::new());
    };
    let mut room = MAX_TOOL_VALUES;
    tools.list(MAX_TOOLS, |tool| read_tool(tool, &mut room))
}

fn read_tool(field: Field<'_>, room: &mut usize) -> Result<Tool, ApiError> {
    let tool = field.object()?;
    match tool.str("type")?.as_deref() {
        None | Some("function") => {}
        Some(other) => {
            let message = format!(
                "only tools of type `function` are supported, not `{}`",
                shortened(other)
            );
            return Err(ApiError::unsupported(tool.path_of("type"), message));
        }
    }
    let function = tool.require("function")?;
    Tool::from_function(function.free_form(room)?).map_err(|error| {
        let message = format!("the field `{}`: {error}", function.path);
        ApiError::invalid_field(function.path, message)
    })
}

/// A choice of one function by name removes the other tools and requires a call.
fn read_tool_choice(body: &Object<'_>, tools: &mut Vec<Tool>) -> Result<ToolChoice, ApiError> {
    const EXPECTED: &str = "\"auto\", \"none\", \"required\" or an object that names a function";
    let Some(field) = body.get("tool_choice") else {
        return Ok(ToolChoice::Auto);
    };
    let choice = match field.kind() {
        Kind::String => match &*field.str()? {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" => ToolChoice::Required,
            _ => return Err(field.wrong(EXPECTED)),
        },
        Kind::Object => {
            let path = field.path.clone();
            let function = field.object()?.require("function")?.object()?;
            let name = function.require("name")?.str()?;
            tools.retain(|tool| tool.name() == name);
            if tools.is_empty() {
                let message = format!("no tool is named `{}`", shortened(&name));
                return Err(ApiError::invalid_field(path, message));
            }
            ToolChoice::Required
        }
        _ => return Err(field.wrong(EXPECTED)),
    };
    if choice == ToolChoice::Required && tools.is_empty() {
        let message = "`tool_choice` requires a tool call, but the request has no tools";
        return Err(ApiError::invalid_field("tool_choice", message));
    }
    Ok(choice)
}

/// What the request says about thinking, if anything. `thinking` decides whether the model thinks,
/// `reasoning_effort` how hard; the other fields are those of other servers.
fn read_thinking(body: &Object<'_>) -> Result<Option<Thinking>, ApiError> {
    let effort = match body.get("reasoning_effort") {
        None => None,
        Some(field) => Some(
            Thinking::from_effort_name(&field.str()?)
                .ok_or_else(|| field.wrong("none, minimal, low, medium, high, xhigh or max"))?,
        ),
    };
    Ok(match (read_switch(body)?, effort) {
        (Some(false), _) => Some(Thinking::Off),
        (Some(true), None | Some(Thinking::Off)) => Some(Thinking::On(None)),
        (Some(true) | None, effort) => effort,
    })
}

fn read_switch(body: &Object<'_>) -> Result<Option<bool>, ApiError> {
    if let Some(thinking) = body.object("thinking")? {
        let kind = thinking.require("type")?;
        return match &*kind.str()? {
            "enabled" => Ok(Some(true)),
            "disabled" => Ok(Some(false)),
            "adaptive" | "auto" => Ok(None),
            _ => Err(kind.wrong("\"enabled\" or \"disabled\"")),
        };
    }
    if let Some(template) = body.object("chat_template_kwargs")? {
        for key in ["thinking", "enable_thinking"] {
            if let Some(switch) = template.bool(key)? {
                return Ok(Some(switch));
            }
        }
    }
    body.bool("think")
}

fn read_response_format(body: &Object<'_>) -> Result<ResponseFormat, ApiError> {
    let Some(format) = body.object("response_format")? else {
        return Ok(ResponseFormat::Text);
    };
    let kind = format.require("type")?;
    match &*kind.str()? {
        "text" => Ok(ResponseFormat::Text),
        "json_object" => Ok(ResponseFormat::JsonObject),
        "json_schema" => Err(ApiError::unsupported(
            kind.path,
            "a `response_format` of `json_schema` cannot be guaranteed: use `json_object` and put \
             the schema into the prompt",
        )),
        _ => Err(kind.wrong("\"text\" or \"json_object\"")),
    }
}

fn read_logprobs(body: &Object<'_>) -> Result<Option<usize>, ApiError> {
    let wanted = body.bool("logprobs")?.unwrap_or(false);
    let top = body.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
    if !wanted && top.is_some_and(|top| top > 0) {
        let message = "`top_logprobs` requires `logprobs` to be true";
        return Err(ApiError::invalid_field("top_logprobs", message));
    }
    Ok(wanted.then(|| top.and_then(|top| usize::try_from(top).ok()).unwrap_or(0)))
}
