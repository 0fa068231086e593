//! The body of an answer, which tells its connection when it ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::connection_state::ConnectionState;

/// Sent into a stream whose client has closed its direction: if it is gone, the system says so.
const COMMENT: &[u8] = b": waiting\n\n";

/// The body of an answer.
#[derive(Debug)]
pub(super) struct AnswerBody {
    body: Body,
    state: Arc<ConnectionState>,
    /// Whether a comment was sent to a client that has closed its direction.
    asked: bool,
}

impl AnswerBody {
    pub(super) fn new(body: Body, state: Arc<ConnectionState>) -> Self {
        AnswerBody {
            body,
            state,
            asked: false,
        }
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        // Only streams of events keep their clients waiting, and each of their frames is one.
        if frame.is_pending() && !self.asked && self.state.flags().half_closed {
            self.asked = true;
            let comment = Frame::data(Bytes::from_static(COMMENT));
            return Poll::Ready(Some(Ok(comment)));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.state.request_ends();
    }
}
