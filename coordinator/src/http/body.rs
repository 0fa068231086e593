//! Bodies: requests are received within bounds of size, time and memory, responses carry text that
//! was serialised before.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use memmap2::{Advice, MmapMut, MmapOptions};

use super::body_memory::{BodyHold, BodyMemory, FREE};
use super::error::ApiError;

/// A body must arrive within this time.
const DEADLINE: Duration = Duration::from_secs(60);

/// A body that has arrived.
#[derive(Debug)]
pub(super) struct ReceivedBody {
    bytes: BodyBytes,
    /// The memory of the body, which the request needs until it is in the scheduler's queue.
    pub(super) hold: BodyHold,
}

impl ReceivedBody {
    pub(super) fn len(&self) -> usize {
        self.bytes.as_slice().len()
    }

    /// The bytes without the hold on their memory.
    pub(super) fn into_parts(self) -> (BodyBytes, BodyHold) {
        (self.bytes, self.hold)
    }
}

/// The bytes of a body.
#[derive(Debug)]
pub(super) enum BodyBytes {
    /// Up to [`FREE`] of them.
    Small(Vec<u8>),
    /// Pages of its own, which exist once they are written and are gone at once afterwards. An
    /// allocator would copy a growing body again and again, and keep its memory.
    Large { pages: MmapMut, used: usize },
}

impl BodyBytes {
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            BodyBytes::Small(bytes) => bytes,
            BodyBytes::Large { pages, used } => &pages[..*used],
        }
    }

    /// The text of a body.
    pub(super) fn text(&self) -> Result<&str, ApiError> {
        text(self.as_slice())
    }

    /// Appends bytes; the caller has checked that at most `limit` come together.
    fn extend(&mut self, more: &[u8], limit: usize) -> Result<(), ApiError> {
        if let BodyBytes::Small(bytes) = self {
            if bytes.len() + more.len() <= FREE {
                bytes.extend_from_slice(more);
                return Ok(());
            }
            let mut pages = map(limit).map_err(|error| {
                tracing::error!(%error, limit, "no address space for a request body");
                ApiError {
                    retry_after_s: Some(5),
                    ..ApiError::status(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "body_memory_exhausted",
                        "the server has no memory for the request body",
                    )
                }
            })?;
            let used = bytes.len();
            pages[..used].copy_from_slice(bytes);
            *self = BodyBytes::Large { pages, used };
        }
        if let BodyBytes::Large { pages, used } = self {
            pages[*used..*used + more.len()].copy_from_slice(more);
            *used += more.len();
        }
        Ok(())
    }
}

/// The text that bytes are.
pub(super) fn text(bytes: &[u8]) -> Result<&str, ApiError> {
    std::str::from_utf8(bytes).map_err(|error| ApiError {
        code: Some("malformed_json"),
        ..ApiError::invalid(format!(
            "the body is not UTF-8 text: byte {} is wrong",
            error.valid_up_to()
        ))
    })
}

/// Address space for a body of any size within the limit.
fn map(limit: usize) -> std::io::Result<MmapMut> {
    let pages = MmapOptions::new().len(limit).no_reserve_swap().map_anon()?;
    // A huge page would take 2 MiB for the first byte. A kernel without huge pages refuses.
    let _ = pages.advise(Advice::NoHugePage);
    Ok(pages)
}

/// Receives a body.
pub(super) async fn receive(
    body: Body,
    memory: &Arc<BodyMemory>,
) -> Result<ReceivedBody, ApiError> {
    let mut received = ReceivedBody {
        bytes: BodyBytes::Small(Vec::new()),
        hold: memory.hold(),
    };
    let deadline = tokio::time::timeout(DEADLINE, fill(&mut received, body, memory));
    deadline.await.map_err(|_| {
        let message = format!("the body did not arrive within {} s", DEADLINE.as_secs());
        ApiError::status(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
    })??;
    received.hold.complete();
    Ok(received)
}

async fn fill(
    received: &mut ReceivedBody,
    body: Body,
    memory: &BodyMemory,
) -> Result<(), ApiError> {
    let limit = memory.body_limit();
    let mut stream = body.into_data_stream();
    loop {
        let frame = tokio::select! {
            frame = stream.next() => frame,
            error = received.hold.lost() => return Err(error),
        };
        let Some(frame) = frame else {
            return Ok(());
        };
        let frame: Bytes = frame.map_err(|error| {
            tracing::debug!(%error, "a request body broke off");
            ApiError::invalid("the body broke off before its end")
        })?;
        if received.len() + frame.len() > limit {
            let message = format!("the body exceeds the limit of {limit} bytes");
            return Err(ApiError::status(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                message,
            ));
        }
        received.hold.grow(frame.len()).await?;
        if received.len() + frame.len() > FREE {
            memory.pace().pass(frame.len()).await;
        }
        received.bytes.extend(&frame, limit)?;
    }
}

/// A response of JSON text.
pub(super) fn json_response(json: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;

    use super::super::body_memory::least_body_memory;
    use super::*;

    fn body(frames: Vec<Vec<u8>>) -> Body {
        Body::from_stream(stream::iter(frames.into_iter().map(Ok::<_, Infallible>)))
    }

    #[tokio::test]
    async fn bodies_of_any_size_and_cut_come_whole() {
        let limit = 100_000;
        let memory = BodyMemory::new(least_body_memory(limit as u64), limit);
        for size in [0, 1, FREE - 1, FREE, FREE + 1, 99_999, 100_000] {
            for frame in [1000, FREE, 70_000] {
                let bytes: Vec<u8> = (0..size).map(|i| i as u8).collect();
                let frames = bytes.chunks(frame).map(<[u8]>::to_vec).collect();
                let received = receive(body(frames), &memory).await.unwrap();
                assert!(received.bytes.as_slice() == bytes, "{size} by {frame}");
            }
        }
        let error = receive(body(vec![vec![0; 60_000]; 2]), &memory).await;
        assert_eq!(error.unwrap_err().code, Some("body_too_large"));
    }
}
