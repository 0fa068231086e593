//! The body of `/v1/completions`, checked.

use std::borrow::Cow;

use super::body;
use super::error::ApiError;
use super::fields::{Entry, Field, Object};
use super::json_slices::Kind;
use super::options::{MAX_TOP_LOGPROBS, Options};

/// The text or the token ids to be completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CompletionPrompt {
    Text(String),
    Tokens(TokenIds),
}

/// The token ids of a prompt, as many as a prompt may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TokenIds {
    pub(super) kept: Vec<u32>,
    /// Ids in the list, kept or not.
    pub(super) count: usize,
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
    /// Reads the body; of a prompt of token ids at most `most` are kept.
    pub(super) fn read(body: &str, most: usize) -> Result<Self, ApiError> {
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
            model: body.str("model")?.map(Cow::into_owned),
            prompt: read_prompt(body.require("prompt")?, most)?,
            logprobs: logprobs.and_then(|n| usize::try_from(n).ok()),
            options,
        })
    }
}

/// Reads the bytes of a completion request's body as the server does, for fuzzing. Returns how many
/// bytes or token ids of the prompt are kept, `most` of those, and how many there are.
///
/// # Errors
/// The error that a client would get.
pub fn read_completion_body(bytes: &[u8], most: usize) -> Result<(usize, usize), ApiError> {
    Ok(
        match CompletionRequest::read(body::text(bytes)?, most)?.prompt {
            CompletionPrompt::Text(text) => (text.len(), text.len()),
            CompletionPrompt::Tokens(ids) => (ids.kept.len(), ids.count),
        },
    )
}

fn read_prompt(field: Field<'_>, most: usize) -> Result<CompletionPrompt, ApiError> {
    // Some clients always send a list of prompts: a list of one is accepted.
    let mut only = None;
    let mut entries = 0;
    if field.kind() == Kind::List {
        let first_two = field.each(|entry| {
            entries += 1;
            if entries == 1 && starts_prompt(&entry) {
                only = Some(entry.field());
                return Ok(());
            }
            Err(several_prompts(&field))
        });
        if let Some(only) = only.filter(|_| first_two.is_ok()) {
            return read_one(&only, most);
        }
    }
    read_one(&field, most)
}

fn read_one(field: &Field<'_>, most: usize) -> Result<CompletionPrompt, ApiError> {
    match field.kind() {
        Kind::String => return Ok(CompletionPrompt::Text(field.str()?.into_owned())),
        Kind::List => {}
        _ => return Err(field.wrong("a string or a list of token ids")),
    }
    let mut ids = TokenIds::default();
    field.each(|entry| {
        if starts_prompt(&entry) {
            return Err(several_prompts(field));
        }
        let id = match entry.json().parse() {
            Ok(id) => id,
            Err(_) => {
                let field = entry.field();
                let id = field.integer(0..=i64::from(u32::MAX))?;
                u32::try_from(id).map_err(|_| field.wrong("a token id"))?
            }
        };
        ids.count += 1;
        if ids.count <= most {
            ids.kept.push(id);
        }
        Ok(())
    })?;
    Ok(CompletionPrompt::Tokens(ids))
}

/// Whether an entry of a list is a prompt of its own.
fn starts_prompt(entry: &Entry<'_, '_>) -> bool {
    entry.json().starts_with(['"', '['])
}

fn several_prompts(field: &Field<'_>) -> ApiError {
    let message = "multiple prompts in one request are not supported: send one request per prompt";
    ApiError::unsupported(field.path.clone(), message)
}
