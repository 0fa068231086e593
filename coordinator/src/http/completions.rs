//! `POST /v1/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::answer_head::AnswerHead;
use super::app::App;
use super::body::{BodyBytes, json_response};
use super::completion_request::{CompletionPrompt, CompletionRequest};
use super::error::ApiError;
use super::identity::Identity;
use super::intake::{Intake, ReadRequest};
use super::options::Streaming;
use super::reading_threads::Wanted;
use super::request_metrics::{GenerateRoute, RequestMeter};
use super::stream::{self, ChunkWriter};
use super::token_json::{CompletionLogprobs, usage_json};
use crate::prompt::{OutputEvent, RenderedPrompt};
use crate::scheduler::{
    AnswerFormat, GeneratedToken, Generation, GenerationEvent, GenerationSummary, TokenUsage,
};

pub(super) async fn completions(
    State(app): State<Arc<App>>,
    Extension(identity): Extension<Identity>,
    body: Body,
) -> Response {
    let mut meter = RequestMeter::new(GenerateRoute::Completions, &identity);
    let (mut generation, streaming) = match begin(&app, &identity, body).await {
        Ok(begun) => begun,
        Err(error) => {
            meter.failed(&error);
            return error.into_response();
        }
    };
    let keep_alive = app.settings.keep_alive;
    let head = AnswerHead::new(app, identity, "text_completion");
    let mut writer = CompletionWriter::new(head, streaming);
    if streaming.stream {
        return stream::respond(generation, writer, meter, keep_alive);
    }
    let mut whole = String::new();
    loop {
        match generation.next_event().await {
            GenerationEvent::Token(token) => {
                writer.note(&token);
                push_text(&mut whole, token.deltas);
            }
            GenerationEvent::Finished { deltas, summary } => {
                push_text(&mut whole, deltas);
                meter.succeeded();
                return json_response(writer.whole(&whole, &summary));
            }
            GenerationEvent::Failed(error) => {
                let error = ApiError::from(error);
                meter.failed(&error);
                return error.into_response();
            }
        }
    }
}

async fn begin(
    app: &Arc<App>,
    identity: &Identity,
    body: Body,
) -> Result<(Generation, Streaming), ApiError> {
    Intake::new(app, identity, "prompt")
        .submit(body, read)
        .await
}

/// From the body to the request with its tokens.
fn read(intake: &Intake, body: BodyBytes, wanted: &Wanted) -> Result<ReadRequest, ApiError> {
    let most = intake.app.scheduler.context();
    let CompletionRequest {
        model,
        prompt,
        logprobs,
        options,
    } = CompletionRequest::read(body.text()?, most)?;
    // The request has its own copies of what it needs.
    drop(body);
    intake.check(model.as_deref())?;
    let prompt = match prompt {
        CompletionPrompt::Tokens(ids) if ids.count > most => {
            return Err(intake.too_long(ids.count, true));
        }
        CompletionPrompt::Tokens(ids) => ids.kept,
        CompletionPrompt::Text(text) => {
            let prompt = RenderedPrompt::completion(text);
            intake.encode(&prompt.segments, wanted)?
        }
    };
    Ok(ReadRequest {
        prompt,
        format: AnswerFormat::Text,
        logprobs,
        options,
    })
}

fn push_text(whole: &mut String, deltas: Vec<OutputEvent>) {
    for delta in deltas {
        if let OutputEvent::Content(text) = delta {
            whole.push_str(&text);
        }
    }
}

/// Writes a completion, whole or in chunks.
#[derive(Debug)]
struct CompletionWriter {
    head: AnswerHead,
    streaming: Streaming,
    logprobs: CompletionLogprobs,
    /// Characters of the tokens so far.
    offset: usize,
}

impl CompletionWriter {
    fn new(head: AnswerHead, streaming: Streaming) -> Self {
        CompletionWriter {
            head,
            streaming,
            logprobs: CompletionLogprobs::default(),
            offset: 0,
        }
    }

    fn note(&mut self, token: &GeneratedToken) {
        if let Some(logprobs) = &token.logprobs {
            let vocabulary = &self.head.app.vocabulary;
            self.offset += self
                .logprobs
                .push(vocabulary, token.token, logprobs, self.offset);
        }
    }

    fn choices(&mut self, text: &str, finish: Value) -> Value {
        let logprobs = if self.logprobs.is_empty() {
            Value::Null
        } else {
            self.logprobs.take()
        };
        json!([{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}])
    }

    fn whole(mut self, text: &str, summary: &GenerationSummary) -> String {
        let choices = self.choices(text, summary.reason.as_str().into());
        self.head.object(&choices, Some(&usage_json(summary.usage)))
    }

    fn chunk(&mut self, text: &str, finish: Value, usage: TokenUsage) -> String {
        let choices = self.choices(text, finish);
        let usage = self.streaming.usage_of_chunk(usage);
        self.head.object(&choices, usage.as_ref())
    }

    fn chunks(&mut self, deltas: Vec<OutputEvent>, usage: TokenUsage) -> Vec<String> {
        let mut text = String::new();
        push_text(&mut text, deltas);
        if text.is_empty() {
            return Vec::new();
        }
        vec![self.chunk(&text, Value::Null, usage)]
    }
}

impl ChunkWriter for CompletionWriter {
    fn token(&mut self, token: GeneratedToken) -> Vec<String> {
        self.note(&token);
        self.chunks(token.deltas, token.usage)
    }

    fn finish(&mut self, deltas: Vec<OutputEvent>, summary: &GenerationSummary) -> Vec<String> {
        let mut chunks = self.chunks(deltas, summary.usage);
        chunks.push(self.chunk("", summary.reason.as_str().into(), summary.usage));
        if self.streaming.include_usage {
            let usage = usage_json(summary.usage);
            chunks.push(self.head.object(&json!([]), Some(&usage)));
        }
        chunks
    }
}
