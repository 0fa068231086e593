//! `POST /v1/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::answer_head::AnswerHead;
use super::app::App;
use super::body::{json_response, read_json};
use super::chat::on_blocking_thread;
use super::completion_request::{CompletionPrompt, CompletionRequest};
use super::error::ApiError;
use super::options::Streaming;
use super::request_metrics::{GenerateRoute, RequestMeter};
use super::stream::{self, ChunkWriter};
use super::token_json::{CompletionLogprobs, usage_json};
use crate::prompt::{OutputEvent, RenderedPrompt};
use crate::scheduler::{
    AnswerFormat, GeneratedToken, Generation, GenerationEvent, GenerationSummary, TokenUsage,
};

pub(super) async fn completions(State(app): State<Arc<App>>, body: Body) -> Response {
    let mut meter = RequestMeter::new(GenerateRoute::Completions);
    let (mut generation, streaming) = match begin(&app, body).await {
        Ok(begun) => begun,
        Err(error) => {
            meter.failed(&error);
            return error.into_response();
        }
    };
    let keep_alive = app.settings.keep_alive;
    let head = AnswerHead::new(app, "cmpl", "text_completion");
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

async fn begin(app: &Arc<App>, body: Body) -> Result<(Generation, Streaming), ApiError> {
    let body = read_json(body, app.settings.body_limit).await?;
    let CompletionRequest {
        model,
        prompt,
        logprobs,
        options,
    } = CompletionRequest::read(&body)?;
    app.card.check(model.as_deref())?;
    app.scheduler.check_room()?;
    let streaming = options.streaming;
    let prompt = match prompt {
        CompletionPrompt::Tokens(tokens) => tokens,
        CompletionPrompt::Text(text) => {
            let app = Arc::clone(app);
            let work = move || {
                let prompt = RenderedPrompt::completion(&text);
                Ok(app.vocabulary.tokenizer.encode_segments(&prompt.segments))
            };
            on_blocking_thread(work).await?
        }
    };
    let generation = app
        .scheduler
        .submit(options.into_request(prompt, AnswerFormat::Text, logprobs))
        .map_err(|error| ApiError::from(error).about("prompt"))?;
    Ok((generation, streaming))
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
