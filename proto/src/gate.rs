//! The way into a server. Connections are accepted as fast as they come, and passed on only once
//! the peer has shown who it is and that it speaks HTTP/2.
//!
//! A peer that stalls or sends garbage occupies only a handshake slot; when all are taken, the
//! oldest is dropped. Peers whose handshake is done have permits of their own.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::connections::{Connection, accept};
use crate::limits::{HANDSHAKE_TIMEOUT, MAX_CONNECTIONS, MAX_HANDSHAKES};
use crate::tls::{self, Credentials, Peers};

/// The first bytes of every HTTP/2 connection.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// First byte of a TLS connection: the type of a record that holds a handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// Bytes before the payload of an HTTP/2 frame.
const FRAME_HEAD_BYTES: usize = 9;

/// HTTP/2 frame types.
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;

/// Fields of a GOAWAY frame: no stream was processed, and the reason.
const LAST_STREAM: u32 = 0;
const INADEQUATE_SECURITY: u32 = 12;

/// Bytes that are read off a refused peer, so that it sees the reason: closing a connection with
/// unread bytes resets it.
const MAX_DRAINED: u64 = 64 << 10;

/// Shortest time between two log lines about refused peers.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// Connections whose handshake is done, at most [`MAX_CONNECTIONS`] at the same time, over TLS or,
/// without credentials for it, in plain text. Each handshake uses the credentials as they are at its
/// start. No item is an error, which would end a server.
pub fn incoming(
    listener: TcpListener,
    tls: Option<(Credentials, Peers)>,
) -> impl futures::Stream<Item = io::Result<Peer>> {
    let gate = Gate {
        listener,
        tls,
        permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
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
    tls: Option<(Credentials, Peers)>,
    permits: Arc<Semaphore>,
    handshakes: JoinSet<Result<Peer, Refused>>,
    oldest_first: VecDeque<AbortHandle>,
    complaints: Complaints,
}

/// A peer that was refused.
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
                    // Dropped for a newer one.
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
        let permits = Arc::clone(&self.permits);
        let tls = self.tls.as_ref();
        let tls = tls.map(|(credentials, peers)| TlsAcceptor::from(credentials.server(*peers)));
        let handshake = async move {
            let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, shake(stream, tls, permits)).await;
            let late = || "its handshake timed out".to_owned();
            shaken
                .unwrap_or_else(|_| Err(late()))
                .map_err(|reason| Refused { peer, reason })
        };
        self.oldest_first
            .push_back(self.handshakes.spawn(handshake));
    }
}

/// The error says what the peer did wrong; it is empty for a peer that closed the connection
/// without a byte, as a port scan does.
async fn shake(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    permits: Arc<Semaphore>,
) -> Result<Peer, String> {
    let mut stream = match tls {
        Some(tls) => Either::Right(Box::new(accept_tls(stream, tls).await?)),
        None => Either::Left(stream),
    };
    if let Err(reason) = expect_preface(&mut stream).await {
        if let Either::Left(stream) = stream {
            drain(stream).await;
        }
        return Err(reason);
    }
    // The semaphore is never closed.
    let permit = permits.acquire_owned().await.ok();
    Ok(Connection::new(stream, PREFACE, permit))
}

async fn accept_tls(stream: TcpStream, tls: TlsAcceptor) -> Result<TlsStream<TcpStream>, String> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(0) => return Err(String::new()),
        Ok(_) if first[0] == PREFACE[0] => {
            refuse_plain_text(stream).await;
            return Err("it speaks plain text, this port speaks TLS".to_owned());
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

/// Tells a peer without TLS the reason, in its own protocol, once it sends a request: an HTTP/2
/// client that is refused before its first request forgets the reason.
async fn refuse_plain_text(mut stream: TcpStream) {
    const WHY: &[u8] = tls::SPEAKS_TLS.as_bytes();
    let settings = frame_head(0, SETTINGS);
    let go_away = [
        &frame_head(8 + WHY.len() as u8, GO_AWAY)[..],
        &LAST_STREAM.to_be_bytes(),
        &INADEQUATE_SECURITY.to_be_bytes(),
        WHY,
    ];
    // A peer that is gone needs no answer.
    if stream.write_all(&settings).await.is_ok()
        && wait_for_request(&mut stream).await.is_ok()
        && stream.write_all(&go_away.concat()).await.is_ok()
    {
        drain(stream).await;
    }
}

/// The head of a frame without flags on stream 0: length of what follows, type, flags, stream.
fn frame_head(length: u8, kind: u8) -> [u8; FRAME_HEAD_BYTES] {
    [0, 0, length, kind, 0, 0, 0, 0, 0]
}

/// Reads up to the first frame that begins a request, or that is not expected before a request.
async fn wait_for_request(stream: &mut TcpStream) -> io::Result<()> {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    if preface != *PREFACE {
        return Ok(());
    }
    // Settings, their acknowledgement, a larger window, and a few more.
    for _ in 0..8 {
        let mut head = [0; FRAME_HEAD_BYTES];
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

/// Ends a connection so that what was written arrives.
async fn drain(mut stream: TcpStream) {
    if stream.shutdown().await.is_ok() {
        let _ = tokio::io::copy(&mut stream.take(MAX_DRAINED), &mut tokio::io::sink()).await;
    }
}

/// Reads the preface, and gives up at the first byte that does not belong to it.
async fn expect_preface(stream: &mut PeerStream) -> Result<(), String> {
    let mut found = [0; PREFACE.len()];
    let mut seen = 0;
    while seen < found.len() {
        let read = stream.read(&mut found[seen..]).await;
        let read =
            read.map_err(|error| tls::explain(&error).unwrap_or_else(|| error.to_string()))?;
        if read == 0 {
            return Err(match seen {
                0 => String::new(),
                _ => "it closed the connection during the handshake".to_owned(),
            });
        }
        seen += read;
        if found[..seen] != PREFACE[..seen] {
            return Err(match (found[0], &stream) {
                (TLS_HANDSHAKE, Either::Left(_)) => {
                    // Any bytes that are not TLS tell the peer.
                    let _ = stream.write_all(&PREFACE[..9]).await;
                    "it speaks TLS, this port speaks plain text".to_owned()
                }
                _ => "it does not speak HTTP/2".to_owned(),
            });
        }
    }
    Ok(())
}

/// Logs refused peers, few enough that they do not fill the log.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    unlogged: u64,
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
            self.unlogged += 1;
            return;
        }
        let unlogged = std::mem::take(&mut self.unlogged);
        self.last = Some(Instant::now());
        tracing::warn!(%peer, reason, unlogged_before = unlogged, "refused a connection");
    }
}

/// A connection whose handshake is done.
pub type Peer = Connection<PeerStream>;

/// Plain text, or TLS.
type PeerStream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

impl Connected for Peer {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        match self.stream() {
            Either::Left(stream) => stream.connect_info(),
            Either::Right(stream) => stream.get_ref().0.connect_info(),
        }
    }
}
