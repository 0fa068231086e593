//! What the dispatcher needs from the world around it: a clock, the nodes that accept work, and a
//! way to hand them calls. Over sockets the transport is [`super::membership::NodeTable`]; the
//! simulation implements the same traits with a clock of its own.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ds4_common::tiles::{Holdings, TileSet};
use ds4_proto::wire::{EncodedBatch, ReceivedRows, RowsFault};

/// Identifies one connection to a node. A node that reconnects gets a new id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

/// A connected node that accepts work.
#[derive(Clone, Debug)]
pub struct LiveNode {
    /// Identifies this connection.
    pub id: NodeId,
    /// Its address, for logs and errors.
    pub name: Arc<str>,
    /// The tiles that it holds, layer by layer.
    pub held: Arc<Holdings>,
    /// Where calls to it are sent.
    pub link: Arc<dyn NodeLink>,
}

/// An immutable snapshot of the cluster; every change of membership produces another one.
#[derive(Clone, Debug, Default)]
pub struct ClusterView {
    /// Version of the snapshot; grows with every change.
    pub epoch: u64,
    /// The nodes that accept work, in the order in which they were named.
    pub nodes: Vec<LiveNode>,
    /// The other nodes: address and reason.
    pub absent: Vec<(Arc<str>, String)>,
}

/// A source of monotonic time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The current time.
    fn now(&self) -> Instant;
}

/// The system's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// Clock, membership and waiting for replies.
pub trait Transport: Clock {
    /// The current snapshot of the cluster. Cheap.
    fn view(&self) -> Arc<ClusterView>;

    /// Waits for a reply until `until` at the latest. Blocks, so it must not be called on an async
    /// thread.
    fn wait(&self, mailbox: &Mailbox, until: Instant) -> Option<CallReply>;
}

/// The connection to one node, as a caller sees it.
pub trait NodeLink: Send + Sync + fmt::Debug {
    /// Accepts a call and writes it as soon as the node's window allows. Never blocks. Every
    /// accepted call gets exactly one reply, unless it is cancelled.
    ///
    /// # Errors
    /// The node accepts no call at present; the caller has to choose another replica.
    fn send(&self, call: ExpertCall) -> Result<CallId, CallError>;

    /// Withdraws a call. No reply follows, unless one is in the mailbox already.
    fn cancel(&self, call: CallId, why: CancelReason);
}

/// Identifies a call on its connection.
pub type CallId = u64;

/// Why a call is withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// The caller gave up, or another replica answered first.
    Unwanted,
    /// The deadline has passed.
    DeadlinePassed,
}

/// A request to one node: some tiles of one layer, for some tokens.
#[derive(Clone, Debug)]
pub struct ExpertCall {
    /// Activations and routes of the tokens, encoded once for all nodes.
    pub encoded: EncodedBatch,
    /// The tiles to compute; the node holds them all.
    pub tiles: Arc<TileSet>,
    /// Bytes of rows in a correct reply.
    pub reply_bytes: usize,
    /// When the reply becomes useless.
    pub deadline: Instant,
    /// Chosen by the caller and returned with the reply.
    pub tag: u64,
    /// Where the reply is delivered.
    pub reply_to: Mailbox,
}

/// The reply to a call, or the reason why there is none.
#[derive(Clone, Debug)]
pub struct CallReply {
    /// The tag of the call.
    pub tag: u64,
    /// When the reply was received.
    pub received: Instant,
    /// `rows x hidden` little-endian floats, of the length that the call expects. Their checksum
    /// is still to be compared.
    pub rows: Result<ReceivedRows, CallError>,
}

/// Why a call has no rows. The texts complete a sentence about the node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The connection is gone; says why.
    #[error("{0}")]
    Lost(String),
    /// The node's queue, or this side's, is full.
    #[error("it is busy")]
    Busy,
    /// The node is shutting down.
    #[error("it is shutting down")]
    Draining,
    /// The deadline passed before the node had computed the call.
    #[error("the deadline passed before it computed the call")]
    Expired,
    /// The node rejected the call; the text is the node's.
    #[error("it refused the call: {0}")]
    Refused(String),
    /// The reply breaks the protocol; says how.
    #[error("it sent a malformed reply: {0}")]
    Malformed(String),
    /// The numbers of the call or of its rows were changed between both machines.
    #[error("{0}")]
    Corrupt(Corruption),
    /// The node computed infinity or NaN; holds a checksum of the rows' bits.
    #[error("it computed rows that are infinite or NaN")]
    NotFinite(u64),
}

/// In which direction numbers were changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corruption {
    /// The node found that the call does not have its checksum.
    #[error("the call did not reach it as it was sent")]
    Call,
    /// The rows do not have the checksum that the node computed, or answer something else.
    #[error("its rows did not arrive as it computed them")]
    Rows,
}

impl From<RowsFault> for CallError {
    fn from(fault: RowsFault) -> Self {
        match fault {
            RowsFault::Checksum => CallError::Corrupt(Corruption::Rows),
            RowsFault::NotFinite(bits) => CallError::NotFinite(bits),
        }
    }
}

impl CallError {
    /// Whether the same call would fail in the same way on the same node.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            CallError::Refused(_) | CallError::Malformed(_) | CallError::NotFinite(_)
        )
    }
}

/// A queue of replies, filled by async tasks and emptied by one compute thread. It holds at most
/// one reply for each call that names it.
#[derive(Clone, Debug, Default)]
pub struct Mailbox(Arc<Inbox>);

#[derive(Debug, Default)]
struct Inbox {
    replies: Mutex<VecDeque<CallReply>>,
    filled: Condvar,
}

impl Mailbox {
    /// Delivers a reply. Blocks no longer than it takes to move one.
    pub fn put(&self, reply: CallReply) {
        self.lock().push_back(reply);
        self.0.filled.notify_one();
    }

    /// The oldest reply, if there is one.
    #[must_use]
    pub fn take(&self) -> Option<CallReply> {
        self.lock().pop_front()
    }

    /// Waits up to `limit`, by the system's clock, for a reply.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> Option<CallReply> {
        let replies = self.lock();
        let waited = self
            .0
            .filled
            .wait_timeout_while(replies, limit, |replies| replies.is_empty());
        waited.unwrap_or_else(PoisonError::into_inner).0.pop_front()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<CallReply>> {
        // No code can panic between two states of the queue.
        self.0
            .replies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_come_in_order_and_wake_the_waiting_thread() {
        let mailbox = Mailbox::default();
        assert!(mailbox.take().is_none());
        assert!(mailbox.wait(Duration::ZERO).is_none());
        let reply = |tag| CallReply {
            tag,
            received: Instant::now(),
            rows: Err(CallError::Busy),
        };
        mailbox.put(reply(1));
        mailbox.put(reply(2));
        assert_eq!(mailbox.take().map(|a| a.tag), Some(1));
        assert_eq!(mailbox.wait(Duration::MAX).map(|a| a.tag), Some(2));
        let other = mailbox.clone();
        let sender = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            other.put(reply(3));
        });
        let woken = mailbox.wait(Duration::from_secs(10));
        assert_eq!(woken.map(|a| a.tag), Some(3));
        sender.join().expect("sender");
    }
}
