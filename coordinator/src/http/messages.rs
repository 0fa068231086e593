//! The `messages` of a chat request.

use serde_json::Value;

use super::error::{ApiError, shortened};
use super::fields::{Field, Object};
use crate::prompt::{Message, ToolCall};

pub(super) fn read_messages(body: &Object<'_>) -> Result<Vec<Message>, ApiError> {
    let field = body.require("messages")?;
    let fields = field.array()?;
    if fields.is_empty() {
        return Err(field.wrong("a list of at least one message"));
    }
    fields.into_iter().map(read_message).collect()
}

fn read_message(field: Field<'_>) -> Result<Message, ApiError> {
    let message = field.object()?;
    let role = message.require("role")?;
    match role.str()? {
        "system" | "developer" => Ok(Message::System {
            content: content(&message)?,
        }),
        "user" => Ok(Message::User {
            content: content(&message)?,
        }),
        "assistant" => read_assistant(&message),
        "tool" => Ok(Message::Tool {
            content: content(&message)?,
            call_id: message.str("tool_call_id")?.map(str::to_owned),
        }),
        "latest_reminder" => Ok(Message::LatestReminder {
            content: content(&message)?,
        }),
        _ => Err(role.wrong("system, developer, user, assistant or tool")),
    }
}

fn read_assistant(message: &Object<'_>) -> Result<Message, ApiError> {
    let calls = message.array("tool_calls")?.unwrap_or_default();
    let tool_calls = calls
        .into_iter()
        .map(read_call)
        .collect::<Result<Vec<_>, _>>()?;
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
        reasoning: reasoning.map(str::to_owned),
        tool_calls,
        prefix: message.bool("prefix")?.unwrap_or(false),
    })
}

fn read_call(field: Field<'_>) -> Result<ToolCall, ApiError> {
    let call = field.object()?;
    let function = call.require("function")?.object()?;
    let arguments = match function.get("arguments") {
        None => "{}".to_owned(),
        Some(Field {
            value: Value::String(text),
            ..
        }) => text.clone(),
        // Not in OpenAI's API, but some clients send an object, and its meaning is clear.
        Some(Field {
            value: object @ Value::Object(_),
            ..
        }) => object.to_string(),
        Some(field) => return Err(field.wrong("a string holding a JSON object")),
    };
    Ok(ToolCall {
        id: call.str("id")?.unwrap_or_default().to_owned(),
        name: function.require("name")?.str()?.to_owned(),
        arguments,
    })
}

fn content(message: &Object<'_>) -> Result<String, ApiError> {
    read_content(&message.require("content")?)
}

/// Content is a string or a list of text parts, which are joined as lines.
fn read_content(field: &Field<'_>) -> Result<String, ApiError> {
    let parts = match field.value {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(_) => field.array()?,
        _ => return Err(field.wrong("a string or a list of text parts")),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for part in parts {
        let path = part.path.clone();
        let part = part.object()?;
        match part.require("type")?.str()? {
            "text" | "input_text" | "output_text" => texts.push(part.require("text")?.str()?),
            other => {
                let message = format!("this model accepts only text, not `{}`", shortened(other));
                return Err(ApiError::unsupported(path, message));
            }
        }
    }
    Ok(texts.join("\n"))
}
