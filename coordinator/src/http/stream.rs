//! Answers as server-sent events.
//!
//! The response begins as soon as the request is taken. While nothing comes of it, comments keep
//! the connection alive by the clock.
//! Dropping the response drops the generation, which stops the work.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream};
use serde_json::Value;

use super::error::ApiError;
use super::meter::Meter;
use crate::prompt::OutputEvent;
use crate::scheduler::{Drawn, Event, Finish, Generation};

/// Turns the events of a generation into the JSON objects of a stream.
pub(super) trait ChunkWriter: Send + 'static {
    fn drawn(&mut self, drawn: Drawn) -> Vec<Value>;
    fn finished(&mut self, deltas: Vec<OutputEvent>, finish: &Finish) -> Vec<Value>;
}

pub(super) fn respond(
    generation: Generation,
    writer: impl ChunkWriter,
    meter: Meter,
    keep_alive: Duration,
) -> Response {
    let lines = Lines {
        generation,
        writer,
        meter,
        ready: VecDeque::new(),
        over: false,
    };
    let sse = Sse::new(lines.into_stream())
        .keep_alive(KeepAlive::new().interval(keep_alive).text("waiting"));
    let mut response = sse.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would otherwise collect the stream before it passes anything on.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    headers.insert(unbuffered, HeaderValue::from_static("no"));
    response
}

struct Lines<W> {
    generation: Generation,
    writer: W,
    meter: Meter,
    ready: VecDeque<Message>,
    over: bool,
}

impl<W: ChunkWriter> Lines<W> {
    fn into_stream(self) -> impl Stream<Item = Result<Message, Infallible>> {
        stream::unfold(self, |mut lines| async move {
            let message = lines.next().await?;
            Some((Ok(message), lines))
        })
    }

    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            if self.over {
                return None;
            }
            let chunks = match self.generation.next_event().await {
                Event::Token(drawn) => self.writer.drawn(drawn),
                Event::Finished { deltas, finish } => {
                    self.over = true;
                    self.meter.succeeded();
                    self.writer.finished(deltas, &finish)
                }
                Event::Failed(error) => {
                    self.over = true;
                    let error = ApiError::from(error);
                    self.meter.failed(&error);
                    let message = Message::default()
                        .event("error")
                        .data(error.body().to_string());
                    self.ready.push_back(message);
                    Vec::new()
                }
            };
            let messages = chunks
                .iter()
                .map(|chunk| Message::default().data(chunk.to_string()));
            self.ready.extend(messages);
            if self.over {
                self.ready.push_back(Message::default().data("[DONE]"));
            }
        }
    }
}
