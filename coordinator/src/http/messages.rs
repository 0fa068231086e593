//! The `messages` of a chat request.

use std::borrow::Cow;

use super::error::{ApiError, shortened};
use super::fields::{Field, Object};
use super::json_slices::Kind;
use crate::prompt::{Message, ToolCall};

/// Most messages of one request.
const MAX_MESSAGES: usize = 100_000;
/// Most calls of one message.
const MAX_CALLS: usize = 4096;
/// Most values in the arguments of one call.
const MAX_ARGUMENT_VALUES: usize = 65_536;

pub(super) fn read_messages(body: &Object<'_>) -> Result<Vec<Message>, ApiError> {
    let field = body.require("messages")?;
    let messages = field.list(MAX_MESSAGES, read_message)?;
    if messages.is_empty() {
        return Err(field.wrong("a list of at least one message"));
    }
    Ok(messages)
}

fn read_message(field: Field<'_>) -> Result<Message, ApiError> {
    let message = field.object()?;
    let role = message.require("role")?;
    match &*role.str()? {
        "system" | "developer" => Ok(Message::System {
            content: content(&message)?,
        }),
        "user" => Ok(Message::User {
            content: content(&message)?,
        }),
        "assistant" => read_assistant(&message),
        "tool" => Ok(Message::Tool {
            content: content(&message)?,
            call_id: message.str("tool_call_id")?.map(Cow::into_owned),
        }),
        "latest_reminder" => Ok(Message::LatestReminder {
            content: content(&message)?,
        }),
        _ => Err(role.wrong("system, developer, user, assistant or tool")),
    }
}

fn read_assistant(message: &Object<'_>) -> Result<Message, ApiError> {
    let tool_calls = match message.get("tool_calls") {
        None => Vec::new(),
        Some(calls) => calls.list(MAX_CALLS, read_call)?,
    };
    let reasoning = match message.str("reasoning_content")? {
        None => message.str("reasoning")?,
        reasoning => reasoning,
    };
    let content = match message.get("content") {
        None => String::new(),
        Some(field) => read_content(&field)?,
    };
    Ok(Message::Assistant {
        content,
        reasoning: reasoning.map(Cow::into_owned),
        tool_calls,
        prefix: message.bool("prefix")?.unwrap_or(false),
    })
}

fn read_call(field: Field<'_>) -> Result<ToolCall, ApiError> {
    let call = field.object()?;
    let function = call.require("function")?.object()?;
    let arguments = match function.get("arguments") {
        None => "{}".to_owned(),
        Some(field) => read_arguments(&field)?,
    };
    Ok(ToolCall {
        id: call.str("id")?.unwrap_or_default().into_owned(),
        name: function.require("name")?.str()?.into_owned(),
        arguments,
    })
}

/// The JSON text of a call's arguments, which the prompt's template reads.
fn read_arguments(field: &Field<'_>) -> Result<String, ApiError> {
    let arguments = match field.kind() {
        Kind::String => field.str()?.into_owned(),
        // Not in OpenAI's API, but some clients send an object, and its meaning is clear.
        Kind::Object => field.json().to_owned(),
        _ => return Err(field.wrong("a string holding a JSON object")),
    };
    field.take_values(&arguments, &mut { MAX_ARGUMENT_VALUES })?;
    Ok(arguments)
}

fn content(message: &Object<'_>) -> Result<String, ApiError> {
    read_content(&message.require("content")?)
}

/// Content is a string or a list of text parts, which are joined as lines.
fn read_content(field: &Field<'_>) -> Result<String, ApiError> {
    match field.kind() {
        Kind::String => return Ok(field.str()?.into_owned()),
        Kind::List => {}
        _ => return Err(field.wrong("a string or a list of text parts")),
    }
    let mut text: Option<String> = None;
    field.each(|entry| {
        let entry = entry.field();
        let path = entry.path.clone();
        let part = entry.object()?;
        match &*part.require("type")?.str()? {
            "text" | "input_text" | "output_text" => {}
            other => {
                let message = format!("this model accepts only text, not `{}`", shortened(other));
                return Err(ApiError::unsupported(path, message));
            }
        }
        let more = part.require("text")?.str()?;
        match &mut text {
            None => text = Some(more.into_owned()),
            Some(text) => {
                text.push('\n');
                text.push_str(&more);
            }
        }
        Ok(())
    })?;
    Ok(text.unwrap_or_default())
}
