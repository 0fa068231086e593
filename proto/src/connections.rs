//! Connections that hold a permit as long as they live, so that no server has more of them than it
//! takes.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Pause after a connection could not be accepted, which happens when the process has too many
/// files open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// A listener that leaves further connections in its backlog while it has as many as it takes.
#[derive(Debug)]
pub struct BoundedListener {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

/// A connection; its permit is free again when it is dropped.
#[derive(Debug)]
pub struct Connection<S = TcpStream> {
    stream: S,
    /// Bytes that were read off the stream and are to be read once more, before the rest.
    replay: &'static [u8],
    _permit: Option<OwnedSemaphorePermit>,
}

impl BoundedListener {
    /// Takes at most `most` connections at the same time from `listener`.
    #[must_use]
    pub fn new(listener: TcpListener, most: usize) -> Self {
        let permits = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        BoundedListener { listener, permits }
    }

    /// The next connection and its peer, once there is a permit for it. An error of one connection, or a lack of
    /// file descriptors, does not end a server: accepting is tried again.
    pub async fn accept(&self) -> (Connection, SocketAddr) {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let (stream, peer) = accept(&self.listener).await;
        (Connection::new(stream, &[], permit), peer)
    }
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
                tracing::error!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_connection_beyond_the_bound_waits_for_a_permit() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let bounded = BoundedListener::new(listener, 1);
        let mut clients = Vec::new();
        for _ in 0..2 {
            clients.push(TcpStream::connect(address).await.expect("connected"));
        }
        let (mut first, _) = bounded.accept().await;
        first.write_all(b"x").await.expect("written");
        assert_eq!(clients[0].read_u8().await.expect("read"), b'x');
        let early = tokio::time::timeout(Duration::from_millis(50), bounded.accept()).await;
        assert!(early.is_err(), "the bound does not hold");
        drop(first);
        let (mut second, _) = bounded.accept().await;
        clients[1].write_all(b"y").await.expect("written");
        assert_eq!(second.read_u8().await.expect("read"), b'y');
    }

    #[tokio::test]
    async fn replayed_bytes_come_before_the_stream() {
        let mut connection = Connection::new(&b"cd"[..], b"ab", None);
        let mut read = String::new();
        connection.read_to_string(&mut read).await.expect("read");
        assert_eq!(read, "abcd");
    }
}
