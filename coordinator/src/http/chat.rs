//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::answer_head::AnswerHead;
use super::app::{App, thinks_by_default};
use super::body::{json_response, read_json};
use super::chat_request::ChatRequest;
use super::chat_response::{ChatChunks, WholeChat};
use super::error::ApiError;
use super::options::Streaming;
use super::request_metrics::{GenerateRoute, RequestMeter};
use super::stream;
use crate::prompt::{Conversation, render};
use crate::scheduler::{AnswerFormat, Generation, GenerationEvent};

pub(super) async fn chat_completions(State(app): State<Arc<App>>, body: Body) -> Response {
    let mut meter = RequestMeter::new(GenerateRoute::Chat);
    let (generation, streaming) = match begin(&app, body).await {
        Ok(begun) => begun,
        Err(error) => {
            meter.failed(&error);
            return error.into_response();
        }
    };
    if streaming.stream {
        let keep_alive = app.settings.keep_alive;
        let head = AnswerHead::new(app, "chatcmpl", "chat.completion.chunk");
        let chunks = ChatChunks::new(head, streaming);
        return stream::respond(generation, chunks, meter, keep_alive);
    }
    let head = AnswerHead::new(app, "chatcmpl", "chat.completion");
    match collect(generation, WholeChat::new(head)).await {
        Ok(answer) => {
            meter.succeeded();
            json_response(answer)
        }
        Err(error) => {
            meter.failed(&error);
            error.into_response()
        }
    }
}

async fn begin(app: &Arc<App>, body: Body) -> Result<(Generation, Streaming), ApiError> {
    let body = read_json(body, app.settings.body_limit).await?;
    let ChatRequest {
        model,
        conversation,
        logprobs,
        options,
    } = ChatRequest::read(&body, thinks_by_default)?;
    app.card.check(model.as_deref())?;
    app.scheduler.check_room()?;
    let streaming = options.streaming;
    let (prompt, format) = tokenize(Arc::clone(app), conversation).await?;
    let generation = app
        .scheduler
        .submit(options.into_request(prompt, format, logprobs))
        .map_err(|error| ApiError::from(error).about("messages"))?;
    Ok((generation, streaming))
}

/// Renders and encodes the prompt on a thread of its own, so that a long one delays no other
/// connection.
async fn tokenize(
    app: Arc<App>,
    conversation: Conversation,
) -> Result<(Vec<u32>, AnswerFormat), ApiError> {
    let work = move || {
        let prompt = render(&conversation, app.card.dialect).map_err(|error| {
            ApiError::invalid(format!("the prompt could not be built: {error}"))
        })?;
        let tokens = app.vocabulary.tokenizer.encode_segments(&prompt.segments);
        let format = AnswerFormat::Chat {
            start: prompt.start,
            tools_offered: conversation.offers_tools(),
        };
        Ok((tokens, format))
    };
    on_blocking_thread(work).await
}

/// Runs `work` off the threads that serve connections.
pub(super) async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(ApiError::status(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "building the prompt failed",
        ))
    })
}

async fn collect(mut generation: Generation, mut answer: WholeChat) -> Result<String, ApiError> {
    loop {
        match generation.next_event().await {
            GenerationEvent::Token(token) => answer.push(token),
            GenerationEvent::Finished { deltas, summary } => {
                return Ok(answer.finish(deltas, &summary));
            }
            GenerationEvent::Failed(error) => return Err(error.into()),
        }
    }
}
