//! Connections that hold a permit as long as they live, so that no server has more of them than it
//! takes.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;

/// Pause after a connection could not be accepted, which happens when the process has too many
/// files open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// Shortest time between two log lines about that.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// A connection; its permit is free again when it is dropped.
#[derive(Debug)]
pub struct Connection<S = TcpStream> {
    stream: S,
    /// Bytes that were read off the stream and are to be read once more, before the rest.
    replay: &'static [u8],
    _permit: Option<OwnedSemaphorePermit>,
}

/// The next connection. After an error of one connection, or a lack of file descriptors, accepting
/// is tried again.
pub(crate) async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // A small message should not wait for the next one. A socket that refuses the
                // option works all the same.
                let _ = stream.set_nodelay(true);
                return (stream, peer);
            }
            Err(error) if peer_left(&error) => {}
            Err(error) => {
                complain(&error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Logs that no connection can be accepted, but not for every try.
fn complain(error: &io::Error) {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    // An instant is an instant, whoever panicked.
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL) {
        *last = Some(Instant::now());
        tracing::error!(%error, "cannot accept connections");
    }
}

/// Whether the peer went away before the connection was accepted.
fn peer_left(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
    )
}

impl<S> Connection<S> {
    /// A connection over `stream`, whose reader first gets `replay`.
    pub(crate) fn new(
        stream: S,
        replay: &'static [u8],
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Connection {
            stream,
            replay,
            _permit: permit,
        }
    }

    /// What the connection runs over.
    pub(crate) fn stream(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.replay.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, out);
        }
        let (now, later) = self.replay.split_at(self.replay.len().min(out.remaining()));
        out.put_slice(now);
        self.replay = later;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn replayed_bytes_come_before_the_stream() {
        let mut connection = Connection::new(&b"cd"[..], b"ab", None);
        let mut read = String::new();
        connection.read_to_string(&mut read).await.expect("read");
        assert_eq!(read, "abcd");
    }
}
