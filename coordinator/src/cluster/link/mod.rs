//! One task a node: it owns the connection, brings it up, and brings it up again. Each time the
//! node is asked anew what it is, since it may have changed meanwhile.

pub(super) mod calls;
mod describe;

use std::sync::Arc;
use std::time::Duration;

use ds4_common::tiles::Holdings;
use ds4_proto::channel;
use ds4_proto::limits::{HANDSHAKE_TIMEOUT, MAX_TEXT_BYTES};
use ds4_proto::pb::{self, compute_reply, compute_request};
use ds4_proto::tls;
use ds4_proto::wire::{NodeInfo, clip, decode_welcome, hello};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

pub use describe::inspect;

use super::fabric::SystemClock;
use super::membership::{ClusterError, EntryId, Expectation, Table};
use super::node_metrics::NodeMetrics;
use calls::{Calls, Next};

/// First pause before a connection is tried again; doubled each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);

/// Longest pause, so that a restarted node is used again within about a second.
const LAST_BACKOFF: Duration = Duration::from_secs(1);

/// Pause before a node that does not fit is asked again whether it does now.
const MISFIT_PAUSE: Duration = Duration::from_secs(5);

/// Calls in flight that this side uses of what the node allows.
const MAX_WINDOW: usize = 64;

/// Messages between a caller and the socket: a window of work and as many cancels, with room for
/// work that was cancelled and not yet written.
const OUTBOUND: usize = 4 * MAX_WINDOW;

/// Why a node that is about to stop gets no work.
const STOPPING: &str = "it is about to stop";

/// What a link connects to and expects there.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) name: Arc<str>,
    pub(super) endpoint: Endpoint,
    pub(super) expected: Expectation,
    /// Where the link says how it stands.
    pub(super) table: Arc<Table>,
    pub(super) entry: EntryId,
    pub(super) metrics: Arc<NodeMetrics>,
}

/// Why there is no connection.
#[derive(Debug)]
enum Fault {
    Lost(String),
    Stopping,
    /// The node is not one of this cluster.
    Misfit(Box<ClusterError>),
}

impl Fault {
    fn misfit(error: ClusterError) -> Self {
        Fault::Misfit(Box::new(error))
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Lost(text) => f.write_str(text),
            Fault::Stopping => f.write_str(STOPPING),
            Fault::Misfit(error) => error.fmt(f),
        }
    }
}

/// Keeps a connection until the entry is no longer listed and the connection is gone.
pub(super) async fn run(target: Target) {
    let mut backoff = FIRST_BACKOFF;
    let mut known_fault = String::new();
    loop {
        let fault = match open(&target).await {
            Ok(stream) => {
                tracing::info!(node = %target.name, held = %stream.held, "expert node connected");
                known_fault.clear();
                let (fault, useful) = serve(&target, stream).await;
                // A welcome alone is no reason for haste: the stream may break at its first call.
                if useful {
                    backoff = FIRST_BACKOFF;
                }
                fault
            }
            Err(fault) => fault,
        };
        let text = fault.to_string();
        if text != known_fault {
            match &fault {
                Fault::Misfit(_) => {
                    tracing::error!(node = %target.name, reason = %text, "expert node is not used");
                }
                _ => tracing::warn!(node = %target.name, reason = %text, "expert node is absent"),
            }
            known_fault = text;
        }
        let pause = match &fault {
            Fault::Misfit(_) => MISFIT_PAUSE,
            _ => backoff,
        };
        match fault {
            Fault::Misfit(error) => target.table.refused(target.entry, *error),
            Fault::Stopping => target.table.draining(target.entry),
            Fault::Lost(text) => target.table.absent(target.entry, text),
        }
        if target.table.forget_unlisted(target.entry) {
            tracing::info!(node = %target.name, "expert node has left");
            return;
        }
        tokio::time::sleep(pause).await;
        backoff = (backoff * 2).min(LAST_BACKOFF);
    }
}

struct Stream {
    outbound: mpsc::Sender<pb::ComputeRequest>,
    inbound: Streaming<pb::ComputeReply>,
    window: usize,
    held: Holdings,
    weight_bytes: u64,
}

/// Connects, asks what the node is, and shakes hands.
async fn open(target: &Target) -> Result<Stream, Fault> {
    let connected = target.endpoint.connect().await;
    let channel = connected.map_err(|e| Fault::Lost(reason(&e)))?;
    let info = describe::describe(&target.name, channel.clone(), &target.expected).await?;
    if info.draining {
        return Err(Fault::Stopping);
    }
    let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(target, channel, &info)).await;
    shaken.unwrap_or_else(|_| Err(Fault::Lost("no welcome came in time".to_owned())))
}

async fn handshake(target: &Target, channel: Channel, info: &NodeInfo) -> Result<Stream, Fault> {
    let lost = |status: tonic::Status| Fault::Lost(status_text(&status));
    let Expectation { fingerprint, shape } = &target.expected;
    let (outbound, requests) = mpsc::channel(OUTBOUND);
    let greeting = hello(fingerprint, shape, info.versions.newest);
    // The channel is new and has room.
    let _ = outbound.try_send(pb::ComputeRequest {
        kind: Some(compute_request::Kind::Hello(greeting)),
    });
    let mut client = channel::compute_client(channel);
    let reply = client.compute(ReceiverStream::new(requests)).await;
    let mut inbound = reply.map_err(lost)?.into_inner();
    let first = inbound.message().await.map_err(lost)?;
    let Some(compute_reply::Kind::Welcome(welcome)) = first.and_then(|message| message.kind) else {
        return Err(Fault::Lost("the first reply is no welcome".to_owned()));
    };
    let (window, held) = decode_welcome(&welcome, shape)
        .map_err(|e| Fault::Lost(format!("malformed welcome: {e}")))?;
    Ok(Stream {
        outbound,
        inbound,
        window: window.min(MAX_WINDOW),
        held,
        weight_bytes: info.weight_bytes,
    })
}

/// A connection that is up. However it ends, nobody waits for it any more.
struct Live<'a> {
    target: &'a Target,
    calls: Arc<Calls>,
    fault: String,
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        self.target
            .table
            .absent(self.target.entry, self.fault.clone());
        self.calls.close(&self.fault);
    }
}

/// Works until the connection ends; says why it did, and whether it was of use.
async fn serve(target: &Target, stream: Stream) -> (Fault, bool) {
    let metrics = Arc::clone(&target.metrics);
    let calls = Arc::new(Calls::new(
        metrics,
        Arc::new(SystemClock),
        stream.outbound,
        stream.window,
    ));
    let mut live = Live {
        target,
        calls: Arc::clone(&calls),
        fault: "the coordinator is shutting down".to_owned(),
    };
    let link = Arc::clone(&calls);
    let held = Arc::new(stream.held);
    target
        .table
        .up(target.entry, held, link, stream.weight_bytes);
    let fault = read(target, &calls, stream.inbound).await;
    live.fault = fault.to_string();
    (fault, calls.was_useful())
}

/// Reads replies until the stream ends.
async fn read(target: &Target, calls: &Calls, mut inbound: Streaming<pb::ComputeReply>) -> Fault {
    loop {
        let message = match inbound.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return Fault::Lost("the node closed the stream".to_owned()),
            Err(status) => return Fault::Lost(status_text(&status)),
        };
        match calls.reply(message.kind) {
            Ok(Next::Read) => {}
            Ok(Next::Drain) => target.table.draining(target.entry),
            Ok(Next::Leave) => return Fault::Stopping,
            Err(fault) => return Fault::Lost(format!("the node broke the protocol: {fault}")),
        }
    }
}

/// An error with its causes on one line; transport errors hide the telling part in their source.
pub(super) fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(text) = tls::explain(error) {
        return clip(&text, MAX_TEXT_BYTES);
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    clip(&text, MAX_TEXT_BYTES)
}

/// A status for a person: what the transport says below it, its message, or its code where it
/// has none.
pub(super) fn status_text(status: &tonic::Status) -> String {
    // A status without a cause came from the node.
    if std::error::Error::source(status).is_some() {
        return reason(status);
    }
    match status.message() {
        "" => status.code().description().to_owned(),
        message => clip(message, MAX_TEXT_BYTES),
    }
}
