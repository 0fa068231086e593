//! One coordinator's stream: handshake, checked work into the queue, outcomes back out. Messages
//! are decoded here, on Tokio's threads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ds4_proto::limits::{HANDSHAKE_TIMEOUT, MAX_NAME_BYTES};
use ds4_proto::pb::{self, compute_request};
use ds4_proto::wire::{Mismatch, check_hello, clip, decode_work, is_intact, open_request, welcome};
use tokio::sync::{Notify, mpsc, watch};
use tonic::{Status, Streaming};

use crate::memory::NoRoom;
use crate::outbox::{Outbox, OutboxItem, PendingReply, SessionSlot, failure};
use crate::state::{MAX_SESSIONS, NodeState, Phase};
use crate::worker::ComputeJob;

/// Reads the hello and starts the stream's reader.
///
/// # Errors
/// The hello is missing, malformed, or of a coordinator that does not fit this node.
pub(crate) async fn open(
    node: Arc<NodeState>,
    mut inbound: Streaming<pb::ComputeRequest>,
) -> Result<Outbox, Status> {
    let slot = Arc::clone(&node.sessions)
        .try_acquire_owned()
        .map_err(|_| {
            Status::resource_exhausted(format!(
                "this node serves at most {MAX_SESSIONS} coordinators"
            ))
        })?;
    if let Some(reason) = node.phase.borrow().refusal() {
        return Err(Status::unavailable(reason));
    }
    let first = tokio::time::timeout(HANDSHAKE_TIMEOUT, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("timed out waiting for the hello"))??;
    let first = first.unwrap_or_default();
    let Some(compute_request::Kind::Hello(hello)) = &first.kind else {
        return Err(Status::invalid_argument(
            "the first message must be a hello",
        ));
    };
    let refuse = |mismatch: Mismatch| Status::failed_precondition(mismatch.to_string());
    let identity = &node.identity;
    check_hello(&first, hello, &identity.fingerprint, &identity.shape)
        .map_err(|error| Status::invalid_argument(error.to_string()))?
        .map_err(refuse)?;
    let welcome = welcome(node.max_in_flight as u32, &identity.held);
    tracing::info!(
        software = clip(&hello.software, MAX_NAME_BYTES),
        "coordinator connected"
    );

    let (replies, outbox) = mpsc::channel(node.max_in_flight + 1);
    // The channel is new and has room.
    let _ = replies.try_send(Ok(PendingReply::Welcome(welcome)));
    // The reader and the reply stream share the slot: the stream counts until its last reply has left.
    let slot = Arc::new(SessionSlot::new(slot));
    let reader = SessionReader {
        phase: node.phase.clone(),
        node: Arc::clone(&node),
        replies,
        open: Arc::default(),
        slot: Arc::clone(&slot),
    };
    tokio::spawn(reader.run(inbound));
    let stats = Arc::clone(&node.stats);
    Ok(Outbox::new(outbox, stats, slot))
}

/// Work of this stream that has no outcome yet.
#[derive(Default)]
struct OpenCalls {
    cancelled: Mutex<HashMap<u64, Arc<AtomicBool>>>,
    changed: Notify,
}

impl OpenCalls {
    fn with<T>(&self, use_map: impl FnOnce(&mut HashMap<u64, Arc<AtomicBool>>) -> T) -> T {
        // The map is whole even if another thread panicked between two operations on it.
        let mut map = self
            .cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        use_map(&mut map)
    }

    fn close(&self, id: u64) {
        self.with(|map| map.remove(&id));
        self.changed.notify_one();
    }

    fn cancel_all(&self) {
        self.with(|map| {
            for flag in map.values() {
                flag.store(true, Ordering::Release);
            }
        });
    }
}

struct SessionReader {
    node: Arc<NodeState>,
    phase: watch::Receiver<Phase>,
    replies: mpsc::Sender<OutboxItem>,
    open: Arc<OpenCalls>,
    slot: Arc<SessionSlot>,
}

impl SessionReader {
    /// Runs until the coordinator is gone, breaks the protocol, or the node stops, and holds the
    /// stream's place among the coordinators until then.
    async fn run(mut self, mut inbound: Streaming<pb::ComputeRequest>) {
        loop {
            match &*self.phase.borrow_and_update() {
                Phase::Draining | Phase::OutOfService(_)
                    if self.open.with(|map| map.is_empty()) =>
                {
                    break;
                }
                Phase::Stopping => break,
                Phase::Draining | Phase::OutOfService(_) | Phase::Serving => {}
            }
            let message = tokio::select! {
                message = inbound.message() => message,
                changed = self.phase.changed() => match changed {
                    Ok(()) => continue,
                    // The node was dropped.
                    Err(_) => break,
                },
                () = self.open.changed.notified() => continue,
                () = self.replies.closed() => break,
            };
            let handled = match message {
                Ok(Some(message)) => match open_request(message) {
                    Ok(kind) => self.handle(kind).await,
                    Err(error) => Err(Status::data_loss(error.to_string())),
                },
                Ok(None) => break,
                Err(status) => {
                    tracing::debug!(%status, "the stream of a coordinator broke");
                    // The coordinator may still be there, if it sent a message that cannot be read.
                    let _ = self.replies.try_send(Err(status));
                    break;
                }
            };
            if let Err(status) = handled {
                tracing::warn!(
                    reason = status.message(),
                    "a coordinator broke the protocol"
                );
                // A coordinator that is gone needs no status.
                let _ = self.reply(Err(status)).await;
                break;
            }
        }
        self.open.cancel_all();
        tracing::info!("coordinator disconnected");
    }

    async fn handle(&self, kind: Option<compute_request::Kind>) -> Result<(), Status> {
        match kind {
            Some(compute_request::Kind::Work(work)) => self.accept(work).await,
            Some(compute_request::Kind::Cancel(cancel)) => {
                self.open.with(|map| {
                    if let Some(flag) = map.get(&cancel.id) {
                        flag.store(true, Ordering::Release);
                    }
                });
                Ok(())
            }
            Some(compute_request::Kind::Hello(_)) => {
                Err(Status::invalid_argument("a second hello on one stream"))
            }
            None => Err(Status::invalid_argument("a message of an unknown kind")),
        }
    }

    async fn accept(&self, work: pb::Work) -> Result<(), Status> {
        let received = Instant::now();
        let id = work.id;
        if self.open.with(|map| map.contains_key(&id)) {
            return Err(Status::invalid_argument(format!(
                "work {id} is already in progress"
            )));
        }
        let refusal = self.phase.borrow().refusal();
        if let Some(reason) = refusal {
            return self.refuse(id, pb::FailureKind::Draining, &reason).await;
        }
        let identity = &self.node.identity;
        let call = match decode_work(&work, &identity.shape, &identity.held) {
            Ok(call) => call,
            // What was changed on its way contradicts the model most of the time.
            Err(error) => {
                let (kind, text) = match is_intact(&work) {
                    true => (pb::FailureKind::Invalid, error.to_string()),
                    false => {
                        let text = format!("the call was changed on its way: {error}");
                        (pb::FailureKind::Corrupt, text)
                    }
                };
                return self.refuse(id, kind, &text).await;
            }
        };
        let input = work.routes.len() + work.input.len();
        let tokens = 0..call.batch.tokens;
        let rows = call.batch.reply_rows(tokens, call.rects.rects());
        let room = match self
            .node
            .memory
            .take(input + rows * identity.shape.row_bytes())
        {
            Ok(room) => room,
            Err(NoRoom::Now) => {
                return self
                    .refuse(
                        id,
                        pb::FailureKind::Busy,
                        "the node's memory for calls is full",
                    )
                    .await;
            }
            Err(error @ NoRoom::TooLarge { .. }) => {
                let text = error.to_string();
                return self.refuse(id, pb::FailureKind::Invalid, &text).await;
            }
        };
        // The place for the reply is taken now, so that the compute thread never waits for it.
        let Ok(place) = self.replies.clone().try_reserve_owned() else {
            return self
                .refuse(id, pb::FailureKind::Busy, "too many calls in flight")
                .await;
        };
        let cancelled = Arc::new(AtomicBool::new(false));
        self.open.with(|map| map.insert(id, Arc::clone(&cancelled)));
        let open = Arc::clone(&self.open);
        let job = ComputeJob {
            call,
            received,
            cancelled,
            done: Box::new(move |outcome| {
                place.send(Ok(PendingReply::Done { id, outcome, room }));
                open.close(id);
            }),
        };
        if self.node.queue.submit(job).is_err() {
            self.open.close(id);
            return self
                .refuse(id, pb::FailureKind::Busy, "the node's queue is full")
                .await;
        }
        self.node.stats.accepted(input);
        Ok(())
    }

    async fn refuse(&self, id: u64, kind: pb::FailureKind, reason: &str) -> Result<(), Status> {
        self.node.stats.refused();
        self.reply(Ok(PendingReply::Failure(failure(id, kind, reason))))
            .await
    }

    /// Waits for room, which holds up this stream alone: its coordinator sent more than its window
    /// and does not read. A node that stops does not wait for such a coordinator.
    async fn reply(&self, reply: OutboxItem) -> Result<(), Status> {
        let mut phase = self.phase.clone();
        let place = match self.replies.try_reserve() {
            Ok(place) => place,
            Err(_) => tokio::select! {
                place = self.replies.reserve() => {
                    place.map_err(|_| Status::cancelled("the coordinator is gone"))?
                }
                _ = phase.wait_for(|phase| *phase != Phase::Serving) => {
                    // Replies that the coordinator does not read never leave: do not wait for them.
                    self.slot.release();
                    return Err(Status::unavailable("this node is shutting down"));
                }
            },
        };
        place.send(reply);
        Ok(())
    }
}
