//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::app::App;
use super::body::read_json;
use super::chat::on_blocking_thread;
use super::chat_response::{Heading, note_usage};
use super::completion_request::{CompletionRequest, Prompt};
use super::error::ApiError;
use super::meter::{Meter, Route};
use super::options::Streaming;
use super::stream::{self, ChunkWriter};
use super::usage::{CompletionLogprobs, usage_json};
use crate::prompt::{self, OutputEvent};
use crate::scheduler::{Drawn, Event, Finish, GenerateRequest, Generation, Reading, Usage};

pub(super) async fn completions(State(app): State<Arc<App>>, body: Body) -> Response {
    let mut meter = Meter::new(Route::Completions);
    let (mut generation, streaming) = match begin(&app, body).await {
        Ok(begun) => begun,
        Err(error) => {
            meter.failed(&error);
            return error.into_response();
        }
    };
    let keep_alive = app.settings.keep_alive;
    let mut text = Text::new(Heading::new(app), streaming);
    if streaming.stream {
        return stream::respond(generation, text, meter, keep_alive);
    }
    let mut whole = String::new();
    loop {
        match generation.next_event().await {
            Event::Token(drawn) => {
                text.note(&drawn);
                push_text(&mut whole, drawn.deltas);
            }
            Event::Finished { deltas, finish } => {
                push_text(&mut whole, deltas);
                meter.succeeded();
                return Json(text.whole(&whole, &finish)).into_response();
            }
            Event::Failed(error) => {
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
    let prompt = match prompt {
        Prompt::Tokens(tokens) => tokens,
        Prompt::Text(text) => {
            let app = Arc::clone(app);
            let work = move || {
                let prompt = prompt::RenderedPrompt::completion(&text);
                Ok(app.vocabulary.tokenizer.encode_segments(&prompt.segments))
            };
            on_blocking_thread(work).await?
        }
    };
    let generation = app.scheduler.submit(GenerateRequest {
        prompt,
        max_tokens: options.max_tokens,
        sampling: options.sampling,
        stop: options.stop,
        ignore_eos: options.ignore_eos,
        logprobs,
        reading: Reading::Plain,
    });
    let generation = generation.map_err(|error| ApiError::from(error).about("prompt"))?;
    Ok((generation, options.streaming))
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
struct Text {
    heading: Heading,
    streaming: Streaming,
    logprobs: CompletionLogprobs,
    /// Characters of the tokens so far.
    offset: usize,
}

impl Text {
    fn new(heading: Heading, streaming: Streaming) -> Self {
        Text {
            heading,
            streaming,
            logprobs: CompletionLogprobs::default(),
            offset: 0,
        }
    }

    fn note(&mut self, drawn: &Drawn) {
        if let Some(logprobs) = &drawn.logprobs {
            let vocabulary = &self.heading.app.vocabulary;
            self.offset += self
                .logprobs
                .push(vocabulary, drawn.token, logprobs, self.offset);
        }
    }

    fn object(&mut self, text: &str, finish: Value) -> Map<String, Value> {
        let logprobs = if self.logprobs.is_empty() {
            Value::Null
        } else {
            self.logprobs.take()
        };
        let mut object = self.heading.object("cmpl", "text_completion");
        let choice =
            json!({"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish});
        object.insert("choices".into(), json!([choice]));
        object
    }

    fn whole(mut self, text: &str, finish: &Finish) -> Value {
        let mut object = self.object(text, finish.reason.as_str().into());
        object.insert("usage".into(), usage_json(finish.usage));
        Value::Object(object)
    }

    fn chunks(&mut self, deltas: Vec<OutputEvent>, usage: Usage) -> Vec<Value> {
        let mut text = String::new();
        push_text(&mut text, deltas);
        if text.is_empty() {
            return Vec::new();
        }
        let mut chunk = self.object(&text, Value::Null);
        note_usage(&mut chunk, self.streaming, usage);
        vec![Value::Object(chunk)]
    }
}

impl ChunkWriter for Text {
    fn drawn(&mut self, drawn: Drawn) -> Vec<Value> {
        self.note(&drawn);
        self.chunks(drawn.deltas, drawn.usage)
    }

    fn finished(&mut self, deltas: Vec<OutputEvent>, finish: &Finish) -> Vec<Value> {
        let mut chunks = self.chunks(deltas, finish.usage);
        let mut last = self.object("", finish.reason.as_str().into());
        note_usage(&mut last, self.streaming, finish.usage);
        chunks.push(Value::Object(last));
        if self.streaming.include_usage {
            let mut usage = self.heading.object("cmpl", "text_completion");
            usage.insert("choices".into(), json!([]));
            usage.insert("usage".into(), usage_json(finish.usage));
            chunks.push(Value::Object(usage));
        }
        chunks
    }
}
