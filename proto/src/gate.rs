//! The way into a server: connections are taken as fast as they come, and handed on only once
//! their peer has shown who it is and that it speaks HTTP/2. Who says nothing, garbage or half of
//! a handshake costs a place among those that are still shaking hands, where the newest drives
//! out the oldest, and no place of a peer that is through.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::stream::{self, Stream};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::connections::accept;
use crate::limits::{HANDSHAKE_TIMEOUT, MAX_CONNECTIONS, MAX_HANDSHAKES};
use crate::tls;

/// With which every HTTP/2 connection begins.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// First byte of a TLS connection: the type of a record that holds a handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// Bytes that are read off a peer that was refused, so that it gets to see why: what is unread
/// when a connection closes resets it.
const MAX_DRAINED: u64 = 64 << 10;

/// Time between two lines of the log about peers that were refused.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// Connections whose handshake is done, at most [`MAX_CONNECTIONS`] at the same time; with
/// settings of TLS, or in plain text. None of them is an error, at which a server would end.
pub fn incoming(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
) -> impl Stream<Item = io::Result<Peer>> {
    let gate = Gate {
        listener,
        tls: tls.map(TlsAcceptor::from),
        places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        handshakes: JoinSet::new(),
        oldest_first: VecDeque::new(),
        complaints: Complaints::default(),
    };
    stream::unfold(gate, |mut gate| async {
        let peer = gate.next().await;
        Some((Ok(peer), gate))
    })
}

struct Gate {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    places: Arc<Semaphore>,
    handshakes: JoinSet<Result<Peer, Refused>>,
    oldest_first: VecDeque<AbortHandle>,
    complaints: Complaints,
}

/// A peer that was not taken.
struct Refused {
    peer: SocketAddr,
    reason: String,
}

impl Gate {
    async fn next(&mut self) -> Peer {
        loop {
            tokio::select! {
                (stream, peer) = accept(&self.listener) => self.begin(stream, peer),
                Some(done) = self.handshakes.join_next() => match done {
                    Ok(Ok(peer)) => return peer,
                    Ok(Err(refused)) => self.complaints.add(&refused),
                    // Driven out.
                    Err(_) => {}
                },
            }
        }
    }

    fn begin(&mut self, stream: TcpStream, peer: SocketAddr) {
        self.oldest_first
            .retain(|handshake| !handshake.is_finished());
        if self.oldest_first.len() >= MAX_HANDSHAKES
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            oldest.abort();
        }
        let (tls, places) = (self.tls.clone(), Arc::clone(&self.places));
        let handshake = async move {
            let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, shake(stream, tls, places)).await;
            let late = || "it did not finish its handshake in time".to_owned();
            shaken
                .unwrap_or_else(|_| Err(late()))
                .map_err(|reason| Refused { peer, reason })
        };
        self.oldest_first
            .push_back(self.handshakes.spawn(handshake));
    }
}

/// The error says what the peer did wrong; an empty one that it only looked whether somebody
/// listens.
async fn shake(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    places: Arc<Semaphore>,
) -> Result<Peer, String> {
    let mut io = match tls {
        Some(tls) => Io::Tls(Box::new(accept_tls(stream, tls).await?)),
        None => Io::Plain(stream),
    };
    if let Err(reason) = expect_preface(&mut io).await {
        if let Io::Plain(stream) = io {
            drain(stream).await;
        }
        return Err(reason);
    }
    let place = places.acquire_owned().await;
    Ok(Peer {
        io,
        replayed: 0,
        // Nobody closes the semaphore.
        _place: place.ok(),
    })
}

async fn accept_tls(stream: TcpStream, tls: TlsAcceptor) -> Result<TlsStream<TcpStream>, String> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(0) => return Err(String::new()),
        Ok(_) if first[0] == PREFACE[0] => {
            refuse_plain_text(stream).await;
            return Err("it speaks plain text, and this port TLS".to_owned());
        }
        Ok(_) => {}
        Err(error) => return Err(error.to_string()),
    }
    let accepted = tls.accept(stream).into_fallible().await;
    match accepted {
        Ok(stream) => Ok(stream),
        Err((error, stream)) => {
            let reason = tls::explain(&error).unwrap_or_else(|| error.to_string());
            drain(stream).await;
            Err(reason)
        }
    }
}

/// Tells a peer without TLS what it lacks, in its own protocol, once it asks for something: an
/// HTTP/2 client that is refused before it asked forgets why.
async fn refuse_plain_text(mut stream: TcpStream) {
    const WHY: &[u8] = tls::SPEAKS_TLS.as_bytes();
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    /// Last stream 0, error INADEQUATE_SECURITY.
    const GO_AWAY: [u8; 17] = [
        0,
        0,
        8 + WHY.len() as u8,
        7,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        12,
    ];
    // A peer that is gone needs no answer.
    if stream.write_all(&SETTINGS).await.is_ok()
        && wait_for_request(&mut stream).await.is_ok()
        && stream.write_all(&[&GO_AWAY, WHY].concat()).await.is_ok()
    {
        drain(stream).await;
    }
}

/// Reads on to the first frame that begins a request, or that is not to be expected before it.
async fn wait_for_request(stream: &mut TcpStream) -> io::Result<()> {
    const HEADERS: u8 = 1;
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    if preface != *PREFACE {
        return Ok(());
    }
    // Settings, their acknowledgement, a larger window, and some more.
    for _ in 0..8 {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let [a, b, c, kind, ..] = head;
        let length = u64::from(u32::from_be_bytes([0, a, b, c]));
        if kind == HEADERS || length > MAX_DRAINED {
            break;
        }
        tokio::io::copy(&mut stream.take(length), &mut tokio::io::sink()).await?;
    }
    Ok(())
}

/// Ends a connection such that what was written arrives.
async fn drain(mut stream: TcpStream) {
    if stream.shutdown().await.is_ok() {
        let _ = tokio::io::copy(&mut stream.take(MAX_DRAINED), &mut tokio::io::sink()).await;
    }
}

/// Reads the preface, and gives up at the first byte that is none of it.
async fn expect_preface(io: &mut Io) -> Result<(), String> {
    let mut found = [0; PREFACE.len()];
    let mut seen = 0;
    while seen < found.len() {
        let read = io.read(&mut found[seen..]).await;
        let read =
            read.map_err(|error| tls::explain(&error).unwrap_or_else(|| error.to_string()))?;
        if read == 0 {
            return Err(match seen {
                0 => String::new(),
                _ => "it left in the middle of a handshake".to_owned(),
            });
        }
        seen += read;
        if found[..seen] != PREFACE[..seen] {
            return Err(match (found[0], &io) {
                (TLS_HANDSHAKE, Io::Plain(_)) => {
                    // Any bytes that are no TLS tell the peer.
                    let _ = io.write_all(&PREFACE[..9]).await;
                    "it speaks TLS, and this port plain text".to_owned()
                }
                _ => "it does not speak HTTP/2".to_owned(),
            });
        }
    }
    Ok(())
}

/// A line about a refused peer now and then: many of them shall not fill the log.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    unsaid: u64,
}

impl Complaints {
    fn add(&mut self, refused: &Refused) {
        let Refused { peer, reason } = refused;
        if reason.is_empty() {
            tracing::debug!(%peer, "a connection was opened and closed");
            return;
        }
        if self
            .last
            .is_some_and(|last| last.elapsed() < COMPLAINT_INTERVAL)
        {
            self.unsaid += 1;
            return;
        }
        let unsaid = std::mem::take(&mut self.unsaid);
        self.last = Some(Instant::now());
        tracing::warn!(%peer, reason, before_it = unsaid, "a connection was refused");
    }
}

/// A connection behind its handshake.
#[derive(Debug)]
pub struct Peer {
    io: Io,
    /// Bytes of the preface that have been read again.
    replayed: usize,
    _place: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

trait ReadWrite: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> ReadWrite for T {}

impl Io {
    fn pinned(&mut self) -> Pin<&mut dyn ReadWrite> {
        match self {
            Io::Plain(stream) => Pin::new(stream),
            Io::Tls(stream) => Pin::new(stream.as_mut()),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.pinned().poll_read(cx, out)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.pinned().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pinned().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pinned().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.pinned().poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = &PREFACE[self.replayed..];
        if left.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, out);
        }
        let taken = left.len().min(out.remaining());
        out.put_slice(&left[..taken]);
        self.replayed += taken;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl Connected for Peer {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        match &self.io {
            Io::Plain(stream) => stream.connect_info(),
            Io::Tls(stream) => stream.get_ref().0.connect_info(),
        }
    }
}
