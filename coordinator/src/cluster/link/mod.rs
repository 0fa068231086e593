//! One task for each node. It owns the connection: it connects, asks what the node is, shakes
//! hands, reads replies, and reconnects. The node is asked again each time, since it may have
//! changed.

pub(super) mod calls;
mod describe;
mod known;
mod one_call;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_common::tiles::Holdings;
use ds4_proto::channel;
use ds4_proto::error_text::{error_text, status_text};
use ds4_proto::limits::HANDSHAKE_TIMEOUT;
use ds4_proto::pb::{self, compute_reply, compute_request};
use ds4_proto::security::Dial;
use ds4_proto::tls::{is_about_certificates, without_clock};
use ds4_proto::wire::{InstanceId, NodeInfo, decode_welcome, hello, open_reply, request};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::known_calls::KnownAnswers;
use super::membership::{ClusterError, EntryId, Expectation, NodeTable};
use super::node_metrics::NodeMetrics;
use super::transport::SystemClock;
use calls::{ConnectionCalls, StreamAction};

pub use one_call::{OneCallError, TileRows, call_once};

/// First pause before reconnecting; doubled after each failure.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);

/// Longest pause, so that a restarted node is used again within about a second.
const LAST_BACKOFF: Duration = Duration::from_secs(1);

/// Pause before a node that does not fit the cluster is asked again.
const MISMATCH_PAUSE: Duration = Duration::from_secs(5);

/// Longest time before a further address of a node is tried again: another machine may have got it.
const ALIAS_PAUSE: Duration = Duration::from_secs(10);

/// Most calls in flight on one connection, even if the node allows more.
const MAX_WINDOW: usize = 64;

/// Messages between the callers and the socket: a window of calls and as many cancels, with room
/// for calls that were cancelled before they were written.
const OUTBOUND: usize = 4 * MAX_WINDOW;

/// Why a draining node gets no work.
const DRAINING: &str = "it is shutting down";

/// Where a link connects to, and what it expects there.
#[derive(Debug)]
pub(super) struct LinkTarget {
    pub(super) name: Arc<str>,
    pub(super) dial: Dial,
    pub(super) expected: Expectation,
    /// Where the link reports its state.
    pub(super) table: Arc<NodeTable>,
    pub(super) entry: EntryId,
    pub(super) metrics: Arc<NodeMetrics>,
    /// What the node's known calls have to give; `None` asks none.
    pub(super) known: Option<Arc<KnownAnswers>>,
}

/// Why there is no connection.
#[derive(Debug)]
enum LinkFault {
    /// The node cannot be reached, or the connection broke.
    Lost(String),
    /// One side refuses the other's certificate. Tried again like a lost connection, since files
    /// are replaced while both run.
    Certificate(String),
    /// The node is connected to under another address.
    Alias {
        /// That address.
        of: Arc<str>,
        instance: InstanceId,
    },
    /// The node is shutting down.
    Draining,
    /// The node's weights are wrong, in its own words. It holds these tiles.
    OutOfService(String, Arc<Holdings>),
    /// The node does not belong to this cluster.
    Mismatch(Box<ClusterError>),
}

impl LinkFault {
    fn mismatch(error: ClusterError) -> Self {
        LinkFault::Mismatch(Box::new(error))
    }

    /// What is wrong with a connection or an answer, `text`, because of `error`.
    fn lost(text: String, error: &(dyn std::error::Error + 'static)) -> Self {
        match is_about_certificates(error) {
            true => LinkFault::Certificate(text),
            false => LinkFault::Lost(text),
        }
    }

    /// Logs it.
    fn tell(&self, node: &str) {
        let reason = self.to_string();
        match self {
            LinkFault::Mismatch(_) | LinkFault::OutOfService(..) => {
                tracing::error!(node, reason, "an expert node cannot be used");
            }
            LinkFault::Certificate(_) => tracing::error!(
                node,
                reason,
                "an expert node cannot be used until a certificate is replaced"
            ),
            LinkFault::Alias { of, .. } => tracing::info!(
                node,
                same_as = &**of,
                "an expert node is reached under two addresses; it counts once, and the second \
                 address is used if the first fails"
            ),
            LinkFault::Lost(_) | LinkFault::Draining => {
                tracing::warn!(node, reason, "an expert node is unavailable");
            }
        }
    }
}

impl std::fmt::Display for LinkFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LinkFault::Lost(text) | LinkFault::Certificate(text) => f.write_str(text),
            LinkFault::Alias { of, .. } => write!(f, "it is the same node as {of}"),
            LinkFault::Draining => f.write_str(DRAINING),
            LinkFault::OutOfService(reason, _) => write!(f, "it is out of service: {reason}"),
            LinkFault::Mismatch(error) => error.fmt(f),
        }
    }
}

/// Keeps a connection until the table's entry is no longer listed and the connection has ended.
pub(super) async fn run(target: LinkTarget) {
    let mut backoff = FIRST_BACKOFF;
    let mut last_logged = String::new();
    loop {
        let fault = match open(&target).await {
            Ok(stream) => {
                tracing::info!(
                    node = %target.name, held = %stream.held,
                    "connected to an expert node"
                );
                last_logged.clear();
                let (fault, useful) = serve(&target, stream).await;
                // A welcome alone does not reset the pause: the stream may break at each first
                // call.
                if useful {
                    backoff = FIRST_BACKOFF;
                }
                fault
            }
            Err(fault) => fault,
        };
        let text = fault.to_string();
        let known = without_clock(&text);
        if known != last_logged {
            fault.tell(&target.name);
            last_logged = known.to_owned();
        }
        let pause = match &fault {
            LinkFault::Mismatch(_) => MISMATCH_PAUSE,
            LinkFault::Alias { .. } => ALIAS_PAUSE,
            _ => backoff,
        };
        let mut awaited = None;
        match fault {
            LinkFault::Mismatch(error) => target.table.refused(target.entry, *error),
            LinkFault::Draining => target.table.draining(target.entry),
            LinkFault::OutOfService(reason, held) => {
                target.table.out_of_service(target.entry, reason, held);
            }
            LinkFault::Alias { of, instance } => {
                target.table.alias(target.entry, of);
                awaited = Some(instance);
            }
            LinkFault::Certificate(text) => {
                target.metrics.certificate_fault();
                target.table.absent(target.entry, text);
            }
            LinkFault::Lost(text) => target.table.absent(target.entry, text),
        }
        if target.table.forget_unlisted(target.entry) {
            tracing::info!(node = %target.name, "an expert node has left the cluster");
            return;
        }
        match awaited {
            // Its first address may fail at any time.
            Some(instance) => {
                let free = target.table.until_free(target.entry, instance);
                let _ = tokio::time::timeout(pause, free).await;
            }
            None => {
                tokio::time::sleep(pause).await;
                backoff = (backoff * 2).min(LAST_BACKOFF);
            }
        }
    }
}

/// A compute stream after the handshake.
struct OpenStream {
    outbound: mpsc::Sender<pb::ComputeRequest>,
    inbound: Streaming<pb::ComputeReply>,
    /// Calls in flight.
    window: usize,
    held: Holdings,
    weight_bytes: u64,
}

/// Connects, asks what the node is, shakes hands, and has the known calls computed.
async fn open(target: &LinkTarget) -> Result<OpenStream, LinkFault> {
    let connected = target.dial.connect().await;
    let channel = connected.map_err(|e| LinkFault::lost(error_text(&e), &e))?;
    if let Some(certificate) = target.dial.peer_certificate() {
        target.metrics.certificate(certificate.not_after);
    }
    let info = describe::describe(&target.name, channel.clone(), &target.expected).await?;
    if !info.out_of_service.is_empty() {
        let held = Arc::new(info.held);
        return Err(LinkFault::OutOfService(info.out_of_service, held));
    }
    if info.draining {
        return Err(LinkFault::Draining);
    }
    if let Some(instance) = info.instance
        && let Err(of) = target.table.claim(target.entry, instance)
    {
        return Err(LinkFault::Alias { of, instance });
    }
    let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(target, channel, &info)).await;
    let shaken = shaken.unwrap_or_else(|_| {
        let seconds = HANDSHAKE_TIMEOUT.as_secs();
        let text = format!("it sent no welcome within {seconds} s");
        Err(LinkFault::Lost(text))
    });
    let mut stream = shaken?;
    if let Some(answers) = &target.known {
        let start = Instant::now();
        known::check(target, answers, &mut stream).await?;
        let took_ms = start.elapsed().as_millis() as u64;
        tracing::debug!(node = %target.name, took_ms, "an expert node's known calls are right");
    }
    Ok(stream)
}

async fn handshake(
    target: &LinkTarget,
    channel: Channel,
    info: &NodeInfo,
) -> Result<OpenStream, LinkFault> {
    let lost = |status: tonic::Status| LinkFault::lost(status_text(&status), &status);
    let Expectation { fingerprint, shape } = &target.expected;
    let (outbound, requests) = mpsc::channel(OUTBOUND);
    let greeting = hello(fingerprint, shape, info.versions.newest);
    // The channel is new and has room.
    let _ = outbound.try_send(request(compute_request::Kind::Hello(greeting)));
    let mut client = channel::compute_client(channel);
    let reply = client.compute(ReceiverStream::new(requests)).await;
    let mut inbound = reply.map_err(lost)?.into_inner();
    let first = inbound.message().await.map_err(lost)?;
    let first = open_reply(first.unwrap_or_default());
    let first = first.map_err(|e| LinkFault::Lost(e.to_string()))?;
    let Some(compute_reply::Kind::Welcome(welcome)) = first else {
        let text = "expected a welcome as the first reply";
        return Err(LinkFault::Lost(text.to_owned()));
    };
    let (window, held) = decode_welcome(&welcome, shape)
        .map_err(|e| LinkFault::Lost(format!("malformed welcome: {e}")))?;
    Ok(OpenStream {
        outbound,
        inbound,
        window: window.min(MAX_WINDOW),
        held,
        weight_bytes: info.weight_bytes,
    })
}

/// Marks the node absent and fails its calls when the connection ends, however it ends.
struct ConnectionGuard<'a> {
    target: &'a LinkTarget,
    calls: Arc<ConnectionCalls>,
    reason: String,
}

impl Drop for ConnectionGuard<'_> {
    fn drop(&mut self) {
        self.target
            .table
            .absent(self.target.entry, self.reason.clone());
        self.calls.close(&self.reason);
    }
}

/// Serves calls until the connection ends. Returns the reason, and whether any call was answered.
async fn serve(target: &LinkTarget, stream: OpenStream) -> (LinkFault, bool) {
    let metrics = Arc::clone(&target.metrics);
    let calls = Arc::new(ConnectionCalls::new(
        metrics,
        Arc::new(SystemClock),
        stream.outbound,
        stream.window,
    ));
    let mut guard = ConnectionGuard {
        target,
        calls: Arc::clone(&calls),
        reason: "the coordinator is shutting down".to_owned(),
    };
    let link = Arc::clone(&calls);
    let held = Arc::new(stream.held);
    target
        .table
        .up(target.entry, held, link, stream.weight_bytes);
    let fault = read(target, &calls, stream.inbound).await;
    guard.reason = fault.to_string();
    (fault, calls.was_useful())
}

/// Reads replies until the stream ends.
async fn read(
    target: &LinkTarget,
    calls: &ConnectionCalls,
    mut inbound: Streaming<pb::ComputeReply>,
) -> LinkFault {
    loop {
        let message = match inbound.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return LinkFault::Lost("the node closed the stream".to_owned()),
            Err(status) => return LinkFault::Lost(status_text(&status)),
        };
        let kind = match open_reply(message) {
            Ok(kind) => kind,
            Err(error) => return LinkFault::Lost(error.to_string()),
        };
        match calls.on_reply(kind) {
            Ok(StreamAction::Read) => {}
            Ok(StreamAction::Drain) => target.table.draining(target.entry),
            Ok(StreamAction::Close) => return LinkFault::Draining,
            Err(breach) => {
                return LinkFault::Lost(format!("the node broke the protocol: {breach}"));
            }
        }
    }
}
