//! The one way of a body into the scheduler: received within the budget of memory, read into a
//! checked request on a thread for that, submitted.

use std::sync::Arc;

use axum::body::Body;

use super::app::App;
use super::body::{BodyBytes, receive};
use super::error::ApiError;
use super::identity::Identity;
use super::options::{Options, Streaming};
use super::reading_threads::Wanted;
use crate::prompt::{EncodeError, EncodeLimits, Segment};
use crate::scheduler::{AdmissionError, AnswerFormat, ClientKey, Generation, RequestOrigin};

/// How much further than the context, in tokens, a prompt that is too long is counted.
const COUNTED_BEYOND: usize = 4096;

/// What the threads that read a request need beside its body.
#[derive(Clone, Debug)]
pub(super) struct Intake {
    pub(super) app: Arc<App>,
    client: ClientKey,
    origin: RequestOrigin,
    /// The field that errors of the prompt are about.
    about: &'static str,
}

/// A request that was read from its body.
#[derive(Debug)]
pub(super) struct ReadRequest {
    pub(super) prompt: Vec<u32>,
    pub(super) format: AnswerFormat,
    pub(super) logprobs: Option<usize>,
    pub(super) options: Options,
}

impl Intake {
    pub(super) fn new(app: &Arc<App>, identity: &Identity, about: &'static str) -> Self {
        Intake {
            app: Arc::clone(app),
            client: identity.client(),
            origin: identity.origin(),
            about,
        }
    }

    /// Receives the body, has `read` make a request of it, and submits that.
    pub(super) async fn submit(
        self,
        body: Body,
        read: fn(&Intake, BodyBytes, &Wanted) -> Result<ReadRequest, ApiError>,
    ) -> Result<(Generation, Streaming), ApiError> {
        let app = Arc::clone(&self.app);
        let (origin, about) = (self.origin.clone(), self.about);
        let received = receive(body, &app.body_memory).await?;
        let size = received.len();
        let (bytes, hold) = received.into_parts();
        let work = move |wanted: &Wanted| {
            let request = read(&self, bytes, wanted);
            // The memory goes where the request goes: back to the handler, or away with it.
            request.map(|request| (request, hold))
        };
        let (request, hold) = app.reading.run(size, work).await?;
        let streaming = request.options.streaming;
        let ReadRequest {
            prompt,
            format,
            logprobs,
            options,
        } = request;
        let generation = app
            .scheduler
            .submit(options.into_request(origin, prompt, format, logprobs))
            .map_err(|error| ApiError::from(error).about(about))?;
        drop(hold);
        Ok((generation, streaming))
    }

    /// Whether a request for `model` would be admitted now: checked before its prompt is built, so
    /// that a flood of requests is refused cheaply.
    pub(super) fn check(&self, model: Option<&str>) -> Result<(), ApiError> {
        self.app.card.check(model)?;
        Ok(self.app.scheduler.check_room(self.client)?)
    }

    /// The tokens of a prompt, unless it has more than fit into the context or nobody wants them.
    pub(super) fn encode(
        &self,
        segments: &[Segment],
        wanted: &Wanted,
    ) -> Result<Vec<u32>, ApiError> {
        let context = self.app.scheduler.context();
        let limits = EncodeLimits {
            keep: context,
            count: context.saturating_mul(2).saturating_add(COUNTED_BEYOND),
            wanted: &|| wanted.get(),
        };
        let tokenizer = &self.app.vocabulary.tokenizer;
        tokenizer
            .encode_within(segments, limits)
            .map_err(|error| match error {
                EncodeError::TooLong { tokens, exact } => self.too_long(tokens, exact),
                // Nobody reads this.
                EncodeError::Unwanted => ApiError::invalid("the client has left"),
            })
    }

    /// The error for a prompt of `prompt` tokens, or more unless `exact`.
    pub(super) fn too_long(&self, prompt: usize, exact: bool) -> ApiError {
        let context = self.app.scheduler.context();
        let error = AdmissionError::PromptTooLong {
            prompt,
            exact,
            context,
        };
        ApiError::from(error).about(self.about)
    }
}
