//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};

use super::answer_head::AnswerHead;
use super::app::{App, thinks_by_default};
use super::body::{BodyBytes, json_response};
use super::chat_request::ChatRequest;
use super::chat_response::{ChatChunks, WholeChat};
use super::error::ApiError;
use super::identity::Identity;
use super::intake::{Intake, ReadRequest};
use super::options::Streaming;
use super::reading_threads::Wanted;
use super::request_metrics::{GenerateRoute, RequestMeter};
use super::stream;
use crate::prompt::render;
use crate::scheduler::{AnswerFormat, Generation, GenerationEvent};

pub(super) async fn chat_completions(
    State(app): State<Arc<App>>,
    Extension(identity): Extension<Identity>,
    body: Body,
) -> Response {
    let mut meter = RequestMeter::new(GenerateRoute::Chat, &identity);
    let (generation, streaming) = match begin(&app, &identity, body).await {
        Ok(begun) => begun,
        Err(error) => {
            meter.failed(&error);
            return error.into_response();
        }
    };
    if streaming.stream {
        let keep_alive = app.settings.keep_alive;
        let head = AnswerHead::new(app, identity, "chat.completion.chunk");
        let chunks = ChatChunks::new(head, streaming);
        return stream::respond(generation, chunks, meter, keep_alive);
    }
    let head = AnswerHead::new(app, identity, "chat.completion");
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

async fn begin(
    app: &Arc<App>,
    identity: &Identity,
    body: Body,
) -> Result<(Generation, Streaming), ApiError> {
    Intake::new(app, identity, "messages")
        .submit(body, read)
        .await
}

/// From the body to the request with its tokens.
fn read(intake: &Intake, body: BodyBytes, wanted: &Wanted) -> Result<ReadRequest, ApiError> {
    let ChatRequest {
        model,
        conversation,
        logprobs,
        options,
    } = ChatRequest::read(body.text()?, thinks_by_default)?;
    // The request has its own copies of what it needs.
    drop(body);
    intake.check(model.as_deref())?;
    let prompt = render(&conversation, intake.app.card.dialect)
        .map_err(|error| ApiError::invalid(format!("the prompt could not be built: {error}")))?;
    let format = AnswerFormat::Chat {
        start: prompt.start,
        tools_offered: conversation.offers_tools(),
    };
    drop(conversation);
    let tokens = intake.encode(&prompt.segments, wanted)?;
    Ok(ReadRequest {
        prompt: tokens,
        format,
        logprobs,
        options,
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
