//! Answers as server-sent events.
//!
//! The response begins as soon as the request is admitted. While it is silent, comments keep the
//! connection alive. Dropping the response drops the generation, which stops its work.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream};

use super::error::ApiError;
use super::request_metrics::RequestMeter;
use crate::prompt::OutputEvent;
use crate::scheduler::{GeneratedToken, Generation, GenerationEvent, GenerationSummary};

/// Turns the events of a generation into the JSON objects of a stream.
pub(super) trait ChunkWriter: Send + 'static {
    fn token(&mut self, token: GeneratedToken) -> Vec<String>;
    fn finish(&mut self, deltas: Vec<OutputEvent>, summary: &GenerationSummary) -> Vec<String>;
}

pub(super) fn respond(
    generation: Generation,
    writer: impl ChunkWriter,
    meter: RequestMeter,
    keep_alive: Duration,
) -> Response {
    let events = SseEvents {
        generation,
        writer,
        meter,
        ready: VecDeque::new(),
        over: false,
    };
    let sse = Sse::new(events.into_stream())
        .keep_alive(KeepAlive::new().interval(keep_alive).text("waiting"));
    let mut response = sse.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would otherwise buffer the stream.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    headers.insert(unbuffered, HeaderValue::from_static("no"));
    response
}

struct SseEvents<W> {
    generation: Generation,
    writer: W,
    meter: RequestMeter,
    /// Written but not yet sent.
    ready: VecDeque<SseEvent>,
    /// Whether the last event is among those that are ready or sent.
    over: bool,
}

impl<W: ChunkWriter> SseEvents<W> {
    fn into_stream(self) -> impl Stream<Item = Result<SseEvent, Infallible>> {
        stream::unfold(self, |mut events| async move {
            let event = events.next().await?;
            Some((Ok(event), events))
        })
    }

    async fn next(&mut self) -> Option<SseEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            let chunks = match self.generation.next_event().await {
                GenerationEvent::Token(token) => self.writer.token(token),
                GenerationEvent::Finished { deltas, summary } => {
                    self.over = true;
                    self.meter.succeeded();
                    self.writer.finish(deltas, &summary)
                }
                GenerationEvent::Failed(error) => {
                    self.over = true;
                    let error = ApiError::from(error);
                    self.meter.failed(&error);
                    let event = SseEvent::default().event("error");
                    self.ready.push_back(event.data(error.body().to_string()));
                    Vec::new()
                }
            };
            let chunks = chunks.into_iter();
            self.ready
                .extend(chunks.map(|chunk| SseEvent::default().data(chunk)));
            if self.over {
                self.ready.push_back(SseEvent::default().data("[DONE]"));
            }
        }
    }
}
