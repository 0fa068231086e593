//! Replies of one stream on their way out. Rows become bytes here, on Tokio's threads, when the
//! stream is ready to send them.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use ds4_proto::pb::{self, compute_reply};
use ds4_proto::wire::{self, rows_message};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::Status;

use crate::memory::Room;
use crate::stats::Stats;
use crate::worker::JobOutcome;

/// A reply, or the status that ends the stream.
pub(crate) type OutboxItem = Result<PendingReply, Status>;

/// A reply before it is encoded.
pub(crate) enum PendingReply {
    /// First reply of a stream.
    Welcome(pb::Welcome),
    /// A call was computed, or dropped from the queue.
    Done {
        id: u64,
        outcome: JobOutcome,
        /// The memory that call and reply take.
        room: Room,
    },
    /// A call that was refused before it was queued.
    Failure(pb::Failure),
}

/// A stream's permit among those of all coordinators, which a stopping node waits for; it returns
/// when this is dropped or released.
pub(crate) struct SessionSlot(Mutex<Option<OwnedSemaphorePermit>>);

impl SessionSlot {
    pub(crate) fn new(permit: OwnedSemaphorePermit) -> Self {
        SessionSlot(Mutex::new(Some(permit)))
    }

    pub(crate) fn release(&self) {
        // Taking it out cannot be interrupted half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The replies of a stream in the form that tonic sends.
pub(crate) struct Outbox {
    replies: mpsc::Receiver<OutboxItem>,
    stats: Arc<Stats>,
    /// Room of the reply that was handed out last. The next one is polled for once that has left,
    /// so a reply that the coordinator does not read keeps its room.
    unsent: Option<Room>,
    /// The stream counts among the coordinators until its last reply has left.
    _slot: Arc<SessionSlot>,
}

impl Outbox {
    pub(crate) fn new(
        replies: mpsc::Receiver<OutboxItem>,
        stats: Arc<Stats>,
        slot: Arc<SessionSlot>,
    ) -> Self {
        Outbox {
            replies,
            stats,
            unsent: None,
            _slot: slot,
        }
    }
}

impl futures::Stream for Outbox {
    type Item = Result<pb::ComputeReply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.unsent = None;
        this.replies.poll_recv(cx).map(|reply| {
            let reply = match reply? {
                Ok(reply) => reply,
                Err(status) => return Some(Err(status)),
            };
            let (message, room) = encode(reply, &this.stats);
            this.unsent = room;
            Some(Ok(message))
        })
    }
}

/// The message that answers call `id` with a failure.
pub(crate) fn failure(id: u64, kind: pb::FailureKind, reason: &str) -> pb::Failure {
    pb::Failure {
        id,
        kind: kind.into(),
        message: reason.to_owned(),
    }
}

fn encode(reply: PendingReply, stats: &Stats) -> (pb::ComputeReply, Option<Room>) {
    let (kind, room) = match reply {
        PendingReply::Welcome(welcome) => (compute_reply::Kind::Welcome(welcome), None),
        PendingReply::Failure(failure) => (compute_reply::Kind::Failure(failure), None),
        PendingReply::Done { id, outcome, room } => {
            (encode_outcome(id, outcome, stats), Some(room))
        }
    };
    (wire::reply(kind), room)
}

fn encode_outcome(id: u64, outcome: JobOutcome, stats: &Stats) -> compute_reply::Kind {
    match outcome {
        JobOutcome::Rows {
            values,
            checksum,
            queued,
            computed,
        } => {
            let (queue_us, compute_us) = (queued.as_micros() as u64, computed.as_micros() as u64);
            let rows = rows_message(id, &values, checksum, queue_us, compute_us);
            stats.sent(rows.rows.len());
            compute_reply::Kind::Rows(rows)
        }
        JobOutcome::Corrupt => failed(
            id,
            pb::FailureKind::Corrupt,
            "the call was changed on its way or in memory",
        ),
        JobOutcome::Cancelled => failed(id, pb::FailureKind::Cancelled, "cancelled"),
        JobOutcome::Expired => failed(
            id,
            pb::FailureKind::Expired,
            "the deadline passed while the call was queued",
        ),
        JobOutcome::Refused(error) => failed(id, pb::FailureKind::Invalid, &error.to_string()),
        JobOutcome::OutOfService(fault) => {
            failed(id, pb::FailureKind::Draining, &fault.to_string())
        }
        JobOutcome::Broken => failed(
            id,
            pb::FailureKind::Internal,
            "the computation failed; see the node's log",
        ),
    }
}

fn failed(id: u64, kind: pb::FailureKind, reason: &str) -> compute_reply::Kind {
    compute_reply::Kind::Failure(failure(id, kind, reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use futures::StreamExt;
    use tokio::sync::Semaphore;

    use crate::memory::CallMemory;

    #[tokio::test]
    async fn a_reply_keeps_its_room_until_it_has_left() {
        let memory = CallMemory::new(1024);
        let (replies, inbox) = mpsc::channel(1);
        let slots = Arc::new(Semaphore::new(1));
        let slot = Arc::new(SessionSlot::new(slots.try_acquire_owned().expect("a slot")));
        let mut outbox = Outbox::new(inbox, Arc::default(), slot);
        let done = |room| PendingReply::Done {
            id: 1,
            outcome: JobOutcome::Cancelled,
            room,
        };
        let room = memory.take(1).expect("room");
        replies.send(Ok(done(room))).await.expect("open");
        assert!(memory.take(1).is_err(), "the reply waits");
        outbox.next().await.expect("a reply").expect("a message");
        assert!(memory.take(1).is_err(), "the reply is being sent");
        let next = tokio::time::timeout(Duration::from_millis(1), outbox.next()).await;
        assert!(next.is_err(), "there is no other");
        let room = memory.take(1).expect("the reply has left");
        replies.send(Ok(done(room))).await.expect("open");
        drop(outbox);
        memory.take(1).expect("the stream is gone");
    }
}
