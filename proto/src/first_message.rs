//! A small limit for the first message of a stream. The codec has one limit for all messages of a
//! stream and allocates a message as soon as it knows its length, so the length is checked before.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// A service whose requests end with OUT_OF_RANGE if their first message is too long.
#[derive(Clone, Debug)]
pub struct FirstMessageLimit<S> {
    inner: S,
    most: usize,
}

impl<S> FirstMessageLimit<S> {
    /// Lets first messages of up to `most` encoded bytes through to `inner`.
    pub fn new(inner: S, most: usize) -> Self {
        FirstMessageLimit { inner, most }
    }
}

impl<S: NamedService> NamedService for FirstMessageLimit<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for FirstMessageLimit<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        let most = self.most;
        self.inner.call(request.map(|body| {
            Body::new(Limited {
                body,
                prefix: [0; PREFIX_BYTES],
                seen: 0,
                most,
            })
        }))
    }
}

/// The body of a request, whose first bytes are watched.
struct Limited {
    body: Body,
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of the prefix that have come.
    seen: usize,
    most: usize,
}

impl Limited {
    /// Refuses the message once its length is known and too long.
    fn check(&mut self, data: &[u8]) -> Result<(), Status> {
        let taken = data.len().min(PREFIX_BYTES - self.seen);
        if taken == 0 {
            return Ok(());
        }
        self.prefix[self.seen..self.seen + taken].copy_from_slice(&data[..taken]);
        self.seen += taken;
        let [_, a, b, c, d] = self.prefix;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if self.seen == PREFIX_BYTES && length > self.most {
            return Err(Status::out_of_range(format!(
                "the first message has {length} bytes, more than the limit of {}",
                self.most
            )));
        }
        Ok(())
    }
}

impl HttpBody for Limited {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
            && let Err(status) = self.check(data)
        {
            return Poll::Ready(Some(Err(status)));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited() -> Limited {
        Limited {
            body: Body::empty(),
            prefix: [0; PREFIX_BYTES],
            seen: 0,
            most: 300,
        }
    }

    #[test]
    fn the_first_length_counts_however_it_arrives() {
        let [length, longer] = [300u32, 301].map(u32::to_be_bytes);
        let mut body = limited();
        body.check(&[&[0], &length[..], &[9; 300]].concat())
            .expect("allowed");
        body.check(&[0xff; 100])
            .expect("later bytes are not a prefix");
        let mut body = limited();
        body.check(&[0]).expect("nothing is known yet");
        body.check(&[]).expect("an empty frame");
        body.check(&longer[..3]).expect("nothing is known yet");
        let status = body.check(&longer[3..]).expect_err("too long");
        assert_eq!(status.code(), tonic::Code::OutOfRange);
    }
}
