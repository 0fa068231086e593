//! One task a node: it owns the stream, brings it up, and brings it up again.

use std::sync::Arc;
use std::time::Duration;

use ds4_common::tiles::{Holdings, TileRect};
use ds4_proto::channel;
use ds4_proto::limits::{HANDSHAKE_TIMEOUT, MAX_TEXT_BYTES};
use ds4_proto::pb::{self, compute_reply, compute_request};
use ds4_proto::tls;
use ds4_proto::wire::{FingerprintBytes, Shape, clip, decode_welcome, hello};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

use super::calls::{Calls, Next, STOPPING};

/// First pause before a connection is tried again; doubled each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);

/// Longest pause, so that a restarted node is used again within about a second.
const LAST_BACKOFF: Duration = Duration::from_secs(1);

/// Pause before work that a busy node refused is sent again.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// Calls in flight that this side uses of what the node allows.
const MAX_WINDOW: usize = 64;

/// Messages between a caller and the socket: a window of work and as many cancels, with room for
/// work that was cancelled and not yet written.
const OUTBOUND: usize = 4 * MAX_WINDOW;

/// What a link connects to and expects there.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) endpoint: Endpoint,
    pub(super) fingerprint: FingerprintBytes,
    pub(super) shape: Shape,
    /// Newest protocol version that the node said it speaks.
    pub(super) version: u32,
    /// The tiles that this coordinator computes there.
    pub(super) tiles: Holdings,
}

/// The connection to one node. Dropping it ends the task and fails what waits.
#[derive(Debug)]
pub(super) struct NodeLink {
    pub(super) calls: Arc<Calls>,
    pub(super) tiles: Holdings,
    connected: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl NodeLink {
    /// Starts connecting on the current tokio runtime.
    pub(super) fn start(calls: Arc<Calls>, target: Target) -> Self {
        let (up, connected) = watch::channel(false);
        let tiles = target.tiles.clone();
        let task = tokio::spawn(run(Arc::clone(&calls), target, up));
        NodeLink {
            calls,
            tiles,
            connected,
            task,
        }
    }

    /// Waits for the first stream.
    pub(super) async fn connected(&self) {
        // The task, which holds the sender, ends only with this link.
        let _ = self.connected.clone().wait_for(|up| *up).await;
    }
}

impl Drop for NodeLink {
    fn drop(&mut self) {
        self.task.abort();
        self.calls.close();
    }
}

async fn run(calls: Arc<Calls>, target: Target, up: watch::Sender<bool>) {
    let mut backoff = FIRST_BACKOFF;
    let mut known_fault = String::new();
    loop {
        let fault = match open(&target).await {
            Ok(stream) => {
                tracing::info!(node = %calls.node(), "expert node connected");
                calls.connected(stream.outbound, stream.window);
                up.send_replace(true);
                let fault = read(&calls, stream.inbound).await;
                up.send_replace(false);
                // A welcome alone is no reason for haste: the stream may break at its first call.
                if calls.was_useful() {
                    backoff = FIRST_BACKOFF;
                }
                fault
            }
            Err(fault) => fault,
        };
        calls.disconnected(&fault);
        if fault != known_fault {
            tracing::warn!(node = %calls.node(), reason = %fault, "expert node lost, reconnecting");
            known_fault = fault;
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(LAST_BACKOFF);
    }
}

struct Stream {
    outbound: mpsc::Sender<pb::ComputeRequest>,
    inbound: Streaming<pb::ComputeReply>,
    window: usize,
}

/// Connects and shakes hands; the error says why not, for a person.
async fn open(target: &Target) -> Result<Stream, String> {
    let channel = target.endpoint.connect().await.map_err(|e| reason(&e))?;
    let (outbound, requests) = mpsc::channel(OUTBOUND);
    let greeting = pb::ComputeRequest {
        kind: Some(compute_request::Kind::Hello(hello(
            &target.fingerprint,
            &target.shape,
            target.version,
        ))),
    };
    // The channel is new and has room.
    let _ = outbound.try_send(greeting);
    let handshake = async {
        let mut client = channel::compute_client(channel);
        let reply = client.compute(ReceiverStream::new(requests)).await;
        let mut inbound = reply.map_err(|s| status_text(&s))?.into_inner();
        let first = inbound.message().await.map_err(|s| status_text(&s))?;
        Ok::<_, String>((inbound, first))
    };
    let (inbound, first) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| "no welcome came in time".to_owned())??;
    let Some(compute_reply::Kind::Welcome(welcome)) = first.and_then(|message| message.kind) else {
        return Err("the first reply is no welcome".to_owned());
    };
    let (window, held) =
        decode_welcome(&welcome, &target.shape).map_err(|e| format!("malformed welcome: {e}"))?;
    if let Some((layer, rect)) = lacking(&target.tiles, &held) {
        return Err(format!(
            "it no longer holds {rect} of layer {layer} in one piece"
        ));
    }
    Ok(Stream {
        outbound,
        inbound,
        window: window.min(MAX_WINDOW),
    })
}

/// A rectangle of `wanted` that does not lie in one that is held.
fn lacking(wanted: &Holdings, held: &Holdings) -> Option<(usize, TileRect)> {
    (0..wanted.layers()).find_map(|layer| {
        let here = held.layer(layer);
        let holder = |rect| here.and_then(|tiles| tiles.holder(rect));
        let rect = wanted.rects(layer).iter().find(|r| holder(**r).is_none())?;
        Some((layer, *rect))
    })
}

/// Reads replies until the stream ends, and says why it did.
async fn read(calls: &Arc<Calls>, mut inbound: Streaming<pb::ComputeReply>) -> String {
    loop {
        let message = match inbound.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return "the node closed the stream".to_owned(),
            Err(status) => return status_text(&status),
        };
        match calls.reply(message.kind) {
            Ok(Next::Read) => {}
            Ok(Next::Leave) => return STOPPING.to_owned(),
            Ok(Next::Retry) => {
                let calls = Arc::clone(calls);
                // At most one for each call in flight.
                tokio::spawn(async move {
                    tokio::time::sleep(BUSY_PAUSE).await;
                    calls.pump();
                });
            }
            Err(fault) => return format!("the node broke the protocol: {fault}"),
        }
    }
}

/// An error with its causes on one line; transport errors hide the telling part in their source.
pub(crate) fn reason(error: &(dyn std::error::Error + 'static)) -> String {
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
pub(crate) fn status_text(status: &tonic::Status) -> String {
    // A status without a cause came from the node.
    if std::error::Error::source(status).is_some() {
        return reason(status);
    }
    match status.message() {
        "" => status.code().description().to_owned(),
        message => clip(message, MAX_TEXT_BYTES),
    }
}
