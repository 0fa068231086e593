//! The body of `/v1/completions`, checked.

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Field, Object};
use super::options::{MAX_TOP_LOGPROBS, Options};

/// The text or the token ids to be completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CompletionPrompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// A checked completion request.
#[derive(Debug)]
pub(super) struct CompletionRequest {
    pub(super) model: Option<String>,
    pub(super) prompt: CompletionPrompt,
    pub(super) logprobs: Option<usize>,
    pub(super) options: Options,
}

/// The limit that OpenAI's API documents for requests without one.
const DEFAULT_MAX_TOKENS: usize = 16;

impl CompletionRequest {
    pub(super) fn read(body: &Value) -> Result<Self, ApiError> {
        let body = Object::root(body)?;
        if body.bool("echo")? == Some(true) {
            return Err(ApiError::unsupported("echo", "`echo` is not supported"));
        }
        if body.str("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::unsupported("suffix", "`suffix` is not supported"));
        }
        let mut options = Options::read(&body)?;
        options.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);
        let logprobs = body.integer("logprobs", 0..=MAX_TOP_LOGPROBS)?;
        Ok(CompletionRequest {
            model: body.str("model")?.map(str::to_owned),
            prompt: read_prompt(&body.require("prompt")?)?,
            logprobs: logprobs.and_then(|n| usize::try_from(n).ok()),
            options,
        })
    }
}

fn read_prompt(field: &Field<'_>) -> Result<CompletionPrompt, ApiError> {
    // Some clients always send a list of prompts: a list of one is accepted.
    if let Value::Array(values) = field.value
        && let [Value::String(_) | Value::Array(_)] = values.as_slice()
        && let [only] = field.array()?.as_slice()
    {
        return read_one(only);
    }
    read_one(field)
}

fn read_one(field: &Field<'_>) -> Result<CompletionPrompt, ApiError> {
    let fields = match field.value {
        Value::String(text) => return Ok(CompletionPrompt::Text(text.clone())),
        Value::Array(_) => field.array()?,
        _ => return Err(field.wrong("a string or a list of token ids")),
    };
    if fields
        .iter()
        .any(|entry| matches!(entry.value, Value::String(_) | Value::Array(_)))
    {
        let message =
            "multiple prompts in one request are not supported: send one request per prompt";
        return Err(ApiError::unsupported(field.path.clone(), message));
    }
    let id = |entry: &Field<'_>| {
        let id = entry.integer(0..=i64::from(u32::MAX))?;
        u32::try_from(id).map_err(|_| entry.wrong("a token id"))
    };
    Ok(CompletionPrompt::Tokens(
        fields.iter().map(id).collect::<Result<_, _>>()?,
    ))
}
