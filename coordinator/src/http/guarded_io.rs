//! The socket below HTTP: it notes whether the client takes what is written, gives the bare error
//! responses of the HTTP library the API's form, and reads on for a moment when it is closed, so
//! that the client sees the answer rather than a reset.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::connection_state::ConnectionState;
use super::malformed;

/// Sent to a client that has closed its direction and waits for an answer: one that is gone resets
/// the connection, and one that is there ignores it.
const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A TCP stream that its connection's task can look at while HTTP reads and writes it.
#[derive(Debug)]
pub(super) struct SharedStream(pub(super) Arc<TcpStream>);

impl AsyncRead for SharedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(out.initialize_unfilled()) {
                Ok(read) => {
                    out.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl SharedStream {
    fn poll_with(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match write(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for SharedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(cx, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(rustix::net::shutdown(
            &*self.0,
            rustix::net::Shutdown::Write,
        )?))
    }
}

/// A stream that keeps its connection's state.
#[derive(Debug)]
pub(super) struct GuardedIo<S> {
    stream: S,
    state: Arc<ConnectionState>,
    /// Bytes of our own that come before all others.
    own: Vec<u8>,
    own_written: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> GuardedIo<S> {
    pub(super) fn new(stream: S, state: Arc<ConnectionState>) -> Self {
        GuardedIo {
            stream,
            state,
            own: Vec::new(),
            own_written: 0,
        }
    }

    /// Notes whether a write made progress.
    fn note<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let blocked = outcome.is_pending();
        if blocked || self.state.flags().blocked_since.is_some() {
            self.state.set(|flags| {
                flags.blocked_since = match (blocked, flags.blocked_since) {
                    (true, None) => Some(Instant::now()),
                    (true, since) => since,
                    (false, _) => None,
                };
            });
        }
        outcome
    }

    fn poll_own(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.own_written < self.own.len() {
            let rest = &self.own[self.own_written..];
            let outcome = Pin::new(&mut self.stream).poll_write(cx, rest);
            match ready!(self.note(outcome))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.own_written += written,
            }
        }
        self.own.clear();
        self.own_written = 0;
        Poll::Ready(Ok(()))
    }

    /// The response in the API's form that replaces `bytes`, if they are a bare error of the HTTP
    /// library.
    fn replacement(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let status = bare_error(bytes)?;
        self.state.set(|flags| flags.unread = true);
        Some(malformed::response(&malformed::error(status, &self.state)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for GuardedIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, out))?;
        self.state.received(&out.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for GuardedIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_own(cx))?;
        if let Some(own) = self.replacement(bytes) {
            self.own = own;
            // What cannot be written yet is written before the next flush ends.
            let _ = self.poll_own(cx)?;
            return Poll::Ready(Ok(bytes.len()));
        }
        self.state
            .set(|flags| flags.answer_begun = flags.in_request);
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [bytes] = slices {
            return self.poll_write(cx, bytes);
        }
        ready!(self.poll_own(cx))?;
        self.state
            .set(|flags| flags.answer_begun = flags.in_request);
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_own(cx))?;
        let flags = self.state.flags();
        if flags.probe_wanted {
            self.state.set(|flags| flags.probe_wanted = false);
            // Between a request and the first byte of its answer.
            if flags.in_request && !flags.answer_begun {
                self.own = INTERIM.to_vec();
                ready!(self.poll_own(cx))?;
            }
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flags = self.state.flags();
        if flags.lingers_since.is_none() {
            ready!(self.poll_own(cx))?;
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            if !flags.unread {
                return Poll::Ready(Ok(()));
            }
            let now = Some(Instant::now());
            self.state.set(|flags| flags.lingers_since = now);
        }
        // The connection's task ends this after a moment.
        let mut scratch = [0; 4096];
        loop {
            let mut out = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut out));
            if read.is_err() || out.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// The status of `bytes`, if they are an error response without a body. The API has none such.
fn bare_error(bytes: &[u8]) -> Option<StatusCode> {
    let rest = bytes
        .strip_prefix(b"HTTP/1.")?
        .get(1..)?
        .strip_prefix(b" ")?;
    if rest.first() != Some(&b'4') || !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let text = std::str::from_utf8(bytes).ok()?;
    let one_head = text.matches("\r\n\r\n").count() == 1;
    let empty = text
        .to_ascii_lowercase()
        .contains("\r\ncontent-length: 0\r\n");
    if !one_head || !empty {
        return None;
    }
    StatusCode::from_bytes(rest.get(..3)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_error_without_a_body_is_bare() {
        let head = |status: &str, length: &str, more: &str| {
            let text = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{more}");
            bare_error(text.as_bytes()).map(|status| status.as_u16())
        };
        assert_eq!(
            head("431 Request Header Fields Too Large", "0", ""),
            Some(431)
        );
        assert_eq!(head("400 Bad Request", "2", "{}"), None);
        assert_eq!(
            head("400 Bad Request", "0", "HTTP/1.1 200 OK\r\n\r\n"),
            None
        );
        assert_eq!(head("200 OK", "0", ""), None);
        for other in [&b"HTTP/1."[..], b"HTTP/1.1 4", b"data: [DONE]\n\n", b""] {
            assert_eq!(bare_error(other), None);
        }
    }
}
