//! The fields that chat and completion requests share: sampling, limits, streaming.

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Field, Object};
use super::json_slices::Kind;
use super::token_json::usage_json;
use crate::sampling::SamplingParams;
use crate::scheduler::{AnswerFormat, GenerateRequest, RequestOrigin, TokenUsage, random_seed};

/// Most stop texts of one request.
const MAX_STOPS: usize = 16;
/// Most bytes of one stop text.
const MAX_STOP_BYTES: usize = 1024;
/// Most bytes of all stop texts together.
const MAX_STOPS_BYTES: usize = 4096;
/// Most alternatives that are reported with each token.
pub(super) const MAX_TOP_LOGPROBS: i64 = 20;

/// How the answer is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Streaming {
    pub(super) stream: bool,
    /// Whether a last chunk reports the usage.
    pub(super) include_usage: bool,
    /// Whether every chunk reports the usage so far.
    pub(super) continuous_usage: bool,
}

impl Streaming {
    /// The `usage` field of a chunk that is not the last.
    pub(super) fn usage_of_chunk(self, usage: TokenUsage) -> Option<Value> {
        if self.continuous_usage {
            Some(usage_json(usage))
        } else {
            self.include_usage.then_some(Value::Null)
        }
    }
}

/// The checked shared fields.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) max_tokens: Option<usize>,
    pub(super) sampling: SamplingParams,
    pub(super) stop: Vec<String>,
    pub(super) ignore_eos: bool,
    pub(super) streaming: Streaming,
}

impl Options {
    pub(super) fn read(body: &Object<'_>) -> Result<Self, ApiError> {
        refuse_unsupported(body)?;
        Ok(Options {
            max_tokens: max_tokens(body)?,
            sampling: sampling(body)?,
            stop: stops(body)?,
            ignore_eos: body.bool("ignore_eos")?.unwrap_or(false),
            streaming: streaming(body)?,
        })
    }

    /// The request for an answer to `prompt`.
    pub(super) fn into_request(
        self,
        origin: RequestOrigin,
        prompt: Vec<u32>,
        format: AnswerFormat,
        logprobs: Option<usize>,
    ) -> GenerateRequest {
        GenerateRequest {
            origin,
            max_tokens: self.max_tokens,
            sampling: self.sampling,
            stop: self.stop,
            ignore_eos: self.ignore_eos,
            logprobs,
            ..GenerateRequest::new(prompt, format)
        }
    }
}

fn max_tokens(body: &Object<'_>) -> Result<Option<usize>, ApiError> {
    let old = body.integer("max_tokens", 1..=i64::MAX)?;
    let new = body.integer("max_completion_tokens", 1..=i64::MAX)?;
    Ok(new.or(old).and_then(|n| usize::try_from(n).ok()))
}

fn sampling(body: &Object<'_>) -> Result<SamplingParams, ApiError> {
    let mut params = SamplingParams::default();
    if let Some(temperature) = body.number("temperature", 0.0..=2.0)? {
        params.temperature = temperature as f32;
    }
    if let Some(field) = body.get("top_p") {
        let top_p = field.number(0.0..=1.0)?;
        if top_p == 0.0 {
            return Err(field.wrong("a number above 0 and at most 1"));
        }
        params.top_p = top_p as f32;
    }
    if let Some(top_k) = body.integer("top_k", -1..=i64::from(u32::MAX))? {
        // Clients send either 0 or -1 for "no limit".
        params.top_k = u32::try_from(top_k).unwrap_or(0);
    }
    if let Some(min_p) = body.number("min_p", 0.0..=1.0)? {
        params.min_p = min_p as f32;
    }
    params.seed = match body.integer("seed", i64::MIN..=i64::MAX)? {
        Some(seed) => seed as u64,
        None => random_seed(),
    };
    Ok(params)
}

fn stops(body: &Object<'_>) -> Result<Vec<String>, ApiError> {
    let Some(field) = body.get("stop") else {
        return Ok(Vec::new());
    };
    let mut bytes = 0;
    let mut read = |text: Field<'_>| {
        let stop = text.str()?;
        if stop.is_empty() {
            return Err(text.wrong("a non-empty string"));
        }
        if stop.len() > MAX_STOP_BYTES {
            let limit = format!("a stop text has at most {MAX_STOP_BYTES} bytes");
            let message = format!("{limit}, and `{}` has {}", text.path, stop.len());
            return Err(ApiError::invalid_field(text.path, message));
        }
        bytes += stop.len();
        if bytes > MAX_STOPS_BYTES {
            let message = format!("all stop texts together have at most {MAX_STOPS_BYTES} bytes");
            return Err(ApiError::invalid_field("stop", message));
        }
        Ok(stop.into_owned())
    };
    match field.kind() {
        Kind::String => Ok(vec![read(field)?]),
        Kind::List => field.list(MAX_STOPS, read),
        _ => Err(field.wrong("a string or a list of strings")),
    }
}

fn streaming(body: &Object<'_>) -> Result<Streaming, ApiError> {
    let stream = body.bool("stream")?.unwrap_or(false);
    let mut streaming = Streaming {
        stream,
        ..Streaming::default()
    };
    if let Some(options) = body.object("stream_options")? {
        streaming.include_usage = options.bool("include_usage")?.unwrap_or(false);
        streaming.continuous_usage = options.bool("continuous_usage_stats")?.unwrap_or(false);
    }
    Ok(streaming)
}

/// Refuses fields of the API that this server does not implement, unless their value changes
/// nothing: an answer that silently ignored them would be wrong without a sign of it.
fn refuse_unsupported(body: &Object<'_>) -> Result<(), ApiError> {
    for (key, neutral) in [
        ("n", 1.0),
        ("best_of", 1.0),
        ("presence_penalty", 0.0),
        ("frequency_penalty", 0.0),
        ("repetition_penalty", 1.0),
    ] {
        let Some(field) = body.get(key) else { continue };
        match field.as_number() {
            None => return Err(field.wrong("a number")),
            Some(value) if value == neutral => {}
            Some(_) => {
                let message = format!("`{key}` is not supported: only {neutral} is accepted");
                return Err(ApiError::unsupported(key, message));
            }
        }
    }
    match body.get("logit_bias") {
        Some(field) if field.kind() != Kind::Object || !field.is_empty() => Err(
            ApiError::unsupported("logit_bias", "`logit_bias` is not supported"),
        ),
        _ => Ok(()),
    }
}
