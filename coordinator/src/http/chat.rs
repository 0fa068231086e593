//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::app::{App, thinks_by_default};
use super::body::read_json;
use super::chat_request::ChatRequest;
use super::chat_response::{AnswerChunks, Heading, WholeAnswer};
use super::error::ApiError;
use super::meter::{Meter, Route};
use super::options::Streaming;
use super::stream;
use crate::prompt::{Conversation, render};
use crate::scheduler::{Event, GenerateRequest, Generation, Reading};

pub(super) async fn chat_completions(State(app): State<Arc<App>>, body: Body) -> Response {
    let mut meter = Meter::new(Route::Chat);
    let (generation, streaming) = match begin(&app, body).await {
        Ok(begun) => begun,
        Err(error) => {
            meter.failed(&error);
            return error.into_response();
        }
    };
    let keep_alive = app.settings.keep_alive;
    let heading = Heading::new(app);
    if streaming.stream {
        let chunks = AnswerChunks::new(heading, streaming);
        return stream::respond(generation, chunks, meter, keep_alive);
    }
    match collect(generation, WholeAnswer::new(heading)).await {
        Ok(answer) => {
            meter.succeeded();
            Json(answer).into_response()
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
    let (prompt, reading) = tokenize(Arc::clone(app), conversation).await?;
    let generation = app.scheduler.submit(GenerateRequest {
        prompt,
        max_tokens: options.max_tokens,
        sampling: options.sampling,
        stop: options.stop,
        ignore_eos: options.ignore_eos,
        logprobs,
        reading,
    });
    let generation = generation.map_err(|error| ApiError::from(error).about("messages"))?;
    Ok((generation, options.streaming))
}

/// Renders and encodes where a long prompt holds up nobody else's connection.
async fn tokenize(
    app: Arc<App>,
    conversation: Conversation,
) -> Result<(Vec<u32>, Reading), ApiError> {
    let work = move || {
        let prompt = render(&conversation, app.card.dialect)
            .map_err(|error| ApiError::invalid(format!("the prompt cannot be built: {error}")))?;
        let tokens = app.vocabulary.tokenizer.encode_segments(&prompt.segments);
        let tools_offered = conversation.offers_tools();
        Ok((
            tokens,
            Reading::Chat {
                start: prompt.start,
                tools_offered,
            },
        ))
    };
    on_blocking_thread(work).await
}

/// Runs `work` off the threads that serve connections.
pub(super) async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        let message = "building the prompt failed";
        Err(ApiError::status(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            message,
        ))
    })
}

async fn collect(
    mut generation: Generation,
    mut answer: WholeAnswer,
) -> Result<serde_json::Value, ApiError> {
    loop {
        match generation.next_event().await {
            Event::Token(drawn) => answer.drawn(drawn),
            Event::Finished { deltas, finish } => return Ok(answer.finished(deltas, &finish)),
            Event::Failed(error) => return Err(error.into()),
        }
    }
}
