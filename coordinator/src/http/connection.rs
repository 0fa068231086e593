//! One connection from its first byte to its end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{StatusCode, Version};
use ds4_proto::tls::MaybeTls;
use futures::FutureExt;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::answer_body::AnswerBody;
use super::connection_state::{ConnectionState, PeerAddr, PlaceKind};
use super::guarded_io::{GuardedIo, SharedStream};
use super::malformed;
use super::places::Place;
use super::server_metrics::{self as metrics, EndReason};
use super::site::Site;

/// The most bytes of a request's head. A longer target than the HTTP library takes still fits, so
/// that the error can say so.
const HEAD_BYTES_MAX: usize = 128 << 10;

/// Times between two looks at a connection with a request, and at one without.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const IDLE_LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// A client that has closed its direction and whose answer has not begun after this time is asked
/// whether it is still there.
const HALF_CLOSED_PROBE: Duration = Duration::from_millis(250);

/// Longest time for what a client still sends after its connection was closed.
const LINGER: Duration = Duration::from_secs(1);

/// Longest time for the head of a request, and for the whole connection, in the reserve.
const PROBE_HEAD_TIMEOUT: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time without traffic before the system asks whether the client's machine is still there, time
/// between such questions, and how many may stay unanswered.
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_COUNT: u32 = 3;

/// Limits on connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections at the same time. A further one takes the place of one without a request, or
    /// else gets one of the reserve.
    pub connections: usize,
    /// Further connections, which may ask for health and metrics only.
    pub reserve: usize,
    /// Longest time for the head of a request, and for an idle connection.
    pub header_timeout: Duration,
    /// Longest time in which a client takes no byte of what is written.
    pub write_timeout: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        ConnectionLimits {
            connections: 512,
            reserve: 32,
            header_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(20),
        }
    }
}

/// A connection that was accepted and has its place.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) state: Arc<ConnectionState>,
    pub(super) place: Place,
    pub(super) site: Site,
    pub(super) limits: ConnectionLimits,
    /// Turns true when the server ends.
    pub(super) closing: watch::Receiver<bool>,
}

impl Connection {
    /// Serves the connection until it ends.
    pub(super) async fn run(self) {
        if let Some(reason) = self.serve().await {
            metrics::ended(reason);
            tracing::debug!(reason = reason.label(), "a connection was ended");
        }
    }

    async fn serve(self) -> Option<EndReason> {
        set_options(&self.stream, self.limits.write_timeout);
        let Connection {
            stream,
            peer,
            state,
            place,
            site,
            limits,
            mut closing,
        } = self;
        let stream = Arc::new(stream);
        let kind = place.kind;
        let limit = head_timeout(kind, &limits);
        let shaken = tokio::select! {
            biased;
            shaken = tokio::time::timeout(limit, shake(&site, &stream)) => shaken,
            () = place.evicted.notified() => return Some(EndReason::Evicted),
            _ = closing.wait_for(|closing| *closing) => return None,
        };
        let io = match shaken {
            Ok(Ok(io)) => GuardedIo::new(io, Arc::clone(&state)),
            Ok(Err(reason)) => {
                tracing::debug!(%peer, reason, "a TLS handshake failed");
                return Some(EndReason::Malformed);
            }
            Err(_) => return Some(EndReason::HeadTimeout),
        };
        let answer_state = Arc::clone(&state);
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            let state = Arc::clone(&answer_state);
            let interim = request.version() >= Version::HTTP_11;
            state.request_begins(interim);
            let has_body = !request.body().is_end_stream();
            request.extensions_mut().insert(PeerAddr(peer));
            let site = site.clone();
            async move {
                let response = site.answer(request, kind).await;
                let refused =
                    response.status().is_client_error() || response.status().is_server_error();
                if refused && has_body {
                    state.set(|flags| flags.unread = true);
                }
                Ok::<_, Infallible>(response.map(|body| AnswerBody::new(body, state)))
            }
        });
        let http = protocol(kind, &limits);
        let mut http = http.serve_connection(TokioIo::new(io), service);
        let mut look = Look {
            stream,
            state: Arc::clone(&state),
            write_timeout: limits.write_timeout,
            kind,
            half_closed_since: None,
        };
        let mut is_closing = false;
        let served = loop {
            tokio::select! {
                served = &mut http => break served,
                () = tokio::time::sleep(look.interval()) => {
                    if let Some(reason) = look.now() {
                        return reason;
                    }
                }
                () = place.evicted.notified() => {
                    // Unless a request has come meanwhile.
                    if kind == PlaceKind::Probe || state.idle_ms().is_some() {
                        return Some(EndReason::Evicted);
                    }
                }
                // A server that is gone ends its connections as well.
                _ = closing.wait_for(|closing| *closing), if !is_closing => {
                    is_closing = true;
                    std::pin::Pin::new(&mut http).graceful_shutdown();
                }
            }
        };
        let Err(error) = served else {
            return (kind == PlaceKind::Probe && state.flags().unread)
                .then_some(EndReason::Refused);
        };
        tracing::debug!(%error, "a connection failed");
        let io = http.into_parts().io.into_inner();
        conclude(&error, io, &state).await
    }
}

/// What HTTP runs over.
type HttpStream = MaybeTls<SharedStream>;

/// Shakes hands if the site has a certificate.
async fn shake(site: &Site, stream: &Arc<TcpStream>) -> Result<HttpStream, String> {
    let shared = SharedStream(Arc::clone(stream));
    match site.tls() {
        None => Ok(HttpStream::Left(shared)),
        Some(identity) => identity.accept(shared).await,
    }
}

/// Longest time for a TLS handshake, and for the head of a request.
fn head_timeout(kind: PlaceKind, limits: &ConnectionLimits) -> Duration {
    match kind {
        PlaceKind::Api => limits.header_timeout,
        PlaceKind::Probe => limits.header_timeout.min(PROBE_HEAD_TIMEOUT),
    }
}

fn protocol(kind: PlaceKind, limits: &ConnectionLimits) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(head_timeout(kind, limits))
        .max_buf_size(HEAD_BYTES_MAX)
        .half_close(true)
        .keep_alive(kind == PlaceKind::Api);
    http
}

/// The end of a connection on which the HTTP library failed: some errors it leaves unanswered.
async fn conclude(
    error: &hyper::Error,
    mut io: GuardedIo<HttpStream>,
    state: &ConnectionState,
) -> Option<EndReason> {
    let (status, reason) = if error.is_timeout() {
        // A client that has sent nothing expects nothing.
        let waits = state.flags().head_begun;
        let status = waits.then_some(StatusCode::REQUEST_TIMEOUT);
        (status, EndReason::HeadTimeout)
    } else if error.is_parse_version_h2() {
        let status = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
        (Some(status), EndReason::Malformed)
    } else if error.is_parse() {
        // Answered already.
        return Some(EndReason::Malformed);
    } else {
        return None;
    };
    if let Some(status) = status {
        state.set(|flags| flags.unread = true);
        let answer = malformed::response(&malformed::error(status, state));
        let answering = async {
            // Whoever is gone needs no answer.
            let _ = io.write_all(&answer).await;
            let _ = io.shutdown().await;
        };
        let _ = tokio::time::timeout(LINGER, answering).await;
    }
    Some(reason)
}

/// Options without which the connection works as well, if the system refuses them.
fn set_options(stream: &TcpStream, write_timeout: Duration) {
    use rustix::net::sockopt;
    // A small message should not wait for the next one.
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, KEEP_ALIVE_IDLE);
    let _ = sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_INTERVAL);
    let _ = sockopt::set_tcp_keepcnt(stream, KEEP_ALIVE_COUNT);
    // Bytes that the system has taken and the client does not count as well.
    #[cfg(target_os = "linux")]
    {
        let limit = u32::try_from(write_timeout.as_millis()).unwrap_or(u32::MAX);
        let _ = sockopt::set_tcp_user_timeout(stream, limit);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = write_timeout;
}

/// Looks at a connection now and then.
struct Look {
    stream: Arc<TcpStream>,
    state: Arc<ConnectionState>,
    write_timeout: Duration,
    kind: PlaceKind,
    half_closed_since: Option<Instant>,
}

impl Look {
    fn interval(&self) -> Duration {
        let flags = self.state.flags();
        let soon =
            flags.in_request || flags.blocked_since.is_some() || flags.lingers_since.is_some();
        if soon {
            LOOK_INTERVAL
        } else {
            IDLE_LOOK_INTERVAL
        }
    }

    /// Whether the connection has to end, and why if it is worth a word.
    fn now(&mut self) -> Option<Option<EndReason>> {
        let flags = self.state.flags();
        let over = |since: Option<Instant>, limit| since.is_some_and(|at| at.elapsed() >= limit);
        if over(flags.blocked_since, self.write_timeout) {
            return Some(Some(EndReason::Stalled));
        }
        if over(flags.lingers_since, LINGER) {
            return Some(None);
        }
        if self.kind == PlaceKind::Probe && self.state.age() >= PROBE_TIMEOUT {
            return Some(Some(EndReason::Evicted));
        }
        if !flags.in_request {
            self.half_closed_since = None;
            return None;
        }
        match peer(&self.stream) {
            Peer::There => {}
            Peer::Gone => return Some(Some(EndReason::Gone)),
            Peer::HalfClosed => {
                let since = *self.half_closed_since.get_or_insert_with(Instant::now);
                let first = !flags.half_closed && since.elapsed() >= HALF_CLOSED_PROBE;
                if first {
                    let ask = !flags.answer_begun && flags.interim_allowed;
                    self.state.set(|flags| {
                        flags.half_closed = true;
                        flags.probe_wanted = ask;
                    });
                }
            }
        }
        None
    }
}

/// What the system knows of the client.
enum Peer {
    There,
    /// It sends nothing more, and may or may not read.
    HalfClosed,
    Gone,
}

fn peer(stream: &TcpStream) -> Peer {
    match stream
        .ready(Interest::READABLE | Interest::WRITABLE)
        .now_or_never()
    {
        Some(Ok(ready)) if ready.is_write_closed() => Peer::Gone,
        Some(Ok(ready)) if ready.is_read_closed() => Peer::HalfClosed,
        Some(Err(_)) => Peer::Gone,
        _ => Peer::There,
    }
}
