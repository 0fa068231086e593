//! Replies of one stream on their way out.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use ds4_proto::pb::{self, compute_reply};
use ds4_proto::wire::bytes_from_floats;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::Status;

use crate::memory::Room;
use crate::stats::Stats;
use crate::worker::Outcome;

/// A reply before its floats become bytes, which happens when the stream is ready for it.
pub(crate) type Reply = Result<Event, Status>;

pub(crate) enum Event {
    Welcome(pb::Welcome),
    Done {
        id: u64,
        outcome: Outcome,
        /// The memory that call and reply take.
        room: Room,
    },
    Failure(pb::Failure),
}

/// A stream's place among the coordinators, which a stopping node waits for; it returns when this
/// is dropped or released.
pub(crate) struct Slot(Mutex<Option<OwnedSemaphorePermit>>);

impl Slot {
    pub(crate) fn new(permit: OwnedSemaphorePermit) -> Self {
        Slot(Mutex::new(Some(permit)))
    }

    pub(crate) fn release(&self) {
        // Taking it out cannot be interrupted half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Replies as tonic sends them.
pub(crate) struct Outbox {
    replies: mpsc::Receiver<Reply>,
    stats: Arc<Stats>,
    /// Of the reply that was handed out last. It is asked for the next one when that has left, so
    /// a reply that the coordinator does not read keeps its room.
    unsent: Option<Room>,
    /// The stream counts among the coordinators until its last reply has left.
    _slot: Arc<Slot>,
}

impl Outbox {
    pub(crate) fn new(replies: mpsc::Receiver<Reply>, stats: Arc<Stats>, slot: Arc<Slot>) -> Self {
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
            let event = match reply? {
                Ok(event) => event,
                Err(status) => return Some(Err(status)),
            };
            let (message, room) = encode(event, &this.stats);
            this.unsent = room;
            Some(Ok(message))
        })
    }
}

/// A failure as it travels.
pub(crate) fn failure(id: u64, kind: pb::FailureKind, reason: &str) -> pb::Failure {
    pb::Failure {
        id,
        kind: kind.into(),
        message: reason.to_owned(),
    }
}

fn encode(event: Event, stats: &Stats) -> (pb::ComputeReply, Option<Room>) {
    let (kind, room) = match event {
        Event::Welcome(welcome) => (compute_reply::Kind::Welcome(welcome), None),
        Event::Failure(failure) => (compute_reply::Kind::Failure(failure), None),
        Event::Done { id, outcome, room } => (encode_outcome(id, outcome, stats), Some(room)),
    };
    (pb::ComputeReply { kind: Some(kind) }, room)
}

fn encode_outcome(id: u64, outcome: Outcome, stats: &Stats) -> compute_reply::Kind {
    match outcome {
        Outcome::Rows {
            values,
            queued,
            computed,
        } => {
            let rows = bytes_from_floats(&values);
            stats.sent(rows.len());
            compute_reply::Kind::Rows(pb::Rows {
                id,
                rows,
                queue_us: queued.as_micros() as u64,
                compute_us: computed.as_micros() as u64,
            })
        }
        Outcome::Cancelled => failed(id, pb::FailureKind::Cancelled, "cancelled"),
        Outcome::Expired => failed(
            id,
            pb::FailureKind::Expired,
            "the deadline passed in the queue",
        ),
        Outcome::Refused(error) => failed(id, pb::FailureKind::Invalid, &error.to_string()),
        Outcome::Broken => failed(
            id,
            pb::FailureKind::Internal,
            "the computation failed; the node's log says where",
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
        let slot = Arc::new(Slot::new(slots.try_acquire_owned().expect("a slot")));
        let mut outbox = Outbox::new(inbox, Arc::default(), slot);
        let done = |room| Event::Done {
            id: 1,
            outcome: Outcome::Cancelled,
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
