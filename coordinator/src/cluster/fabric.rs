//! What the dispatcher needs of the world around it: a clock, the nodes that take work now, and
//! a way to hand them calls. Over sockets it is [`super::membership::Table`]; anything else that
//! keeps to these traits may stand in for it, with a clock of its own.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ds4_common::tiles::{Holdings, TileSet};
use ds4_proto::wire::EncodedBatch;

/// One connection to a node, named once: a node that comes back has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

/// A node that takes work.
#[derive(Clone, Debug)]
pub struct ViewNode {
    pub id: NodeId,
    /// For people: its address.
    pub name: Arc<str>,
    pub held: Arc<Holdings>,
    pub link: Arc<dyn Link>,
}

/// The nodes at one moment. Never changes; a change is another view.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Grows with every change.
    pub epoch: u64,
    pub nodes: Vec<ViewNode>,
    /// Nodes that take no work now, and why.
    pub absent: Vec<(Arc<str>, String)>,
}

/// Tells the time.
pub trait Clock: Send + Sync + fmt::Debug {
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

/// Clock, membership and waiting.
pub trait Fabric: Clock {
    /// The nodes now. Cheap.
    fn view(&self) -> Arc<View>;

    /// Waits for an arrival until `until` at the latest. Must not be called on an async thread.
    fn wait(&self, mailbox: &Mailbox, until: Instant) -> Option<Arrival>;
}

/// The way to one node.
pub trait Link: Send + Sync + fmt::Debug {
    /// Takes a call: onto the wire at once if there is room, else as soon as there is. Never
    /// blocks. Each call that was taken and not cancelled has exactly one arrival.
    ///
    /// # Errors
    /// The node takes none now.
    fn send(&self, call: Call) -> Result<CallId, CallError>;

    /// Forgets a call; no arrival follows, unless it is in the mailbox already.
    fn cancel(&self, call: CallId, why: Forgotten);
}

/// A call within its link.
pub type CallId = u64;

/// Why an answer is no longer awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgotten {
    /// Nobody wants it, or another answered first.
    Cancelled,
    /// It was due before now.
    Late,
}

/// Some tiles of one layer for some tokens, for one node.
#[derive(Clone, Debug)]
pub struct Call {
    pub encoded: EncodedBatch,
    pub tiles: Arc<TileSet>,
    /// Bytes of the rows that answer the call.
    pub expected: usize,
    /// When nobody wants the answer any more.
    pub deadline: Instant,
    /// Comes back with the arrival.
    pub slot: u64,
    pub to: Mailbox,
}

/// The answer to a call.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub slot: u64,
    /// When it was received.
    pub at: Instant,
    pub rows: Result<Bytes, CallError>,
}

/// Why a call has no rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    #[error("{0}")]
    Lost(String),
    #[error("it is busy")]
    Busy,
    #[error("it is about to stop")]
    Draining,
    #[error("it had no time for the call")]
    Expired,
    #[error("it refused the call: {0}")]
    Refused(String),
    #[error("it sent a malformed reply: {0}")]
    Malformed(String),
}

impl CallError {
    /// Whether the same call would end in the same way at the same node.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, CallError::Refused(_) | CallError::Malformed(_))
    }
}

/// Where arrivals wait for a compute thread. It holds no more than one arrival for each call that
/// names it.
#[derive(Clone, Debug, Default)]
pub struct Mailbox(Arc<Inbox>);

#[derive(Debug, Default)]
struct Inbox {
    arrivals: Mutex<VecDeque<Arrival>>,
    filled: Condvar,
}

impl Mailbox {
    /// Never blocks for longer than it takes to move an arrival.
    pub fn put(&self, arrival: Arrival) {
        self.lock().push_back(arrival);
        self.0.filled.notify_one();
    }

    #[must_use]
    pub fn take(&self) -> Option<Arrival> {
        self.lock().pop_front()
    }

    /// Waits for up to `limit` by the system's clock.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> Option<Arrival> {
        let arrivals = self.lock();
        let waited = self
            .0
            .filled
            .wait_timeout_while(arrivals, limit, |arrivals| arrivals.is_empty());
        waited.unwrap_or_else(PoisonError::into_inner).0.pop_front()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Arrival>> {
        // Nothing can panic between two states of the queue.
        self.0
            .arrivals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_in_order_and_wake_the_one_that_waits() {
        let mailbox = Mailbox::default();
        assert!(mailbox.take().is_none());
        assert!(mailbox.wait(Duration::ZERO).is_none());
        let arrival = |slot| Arrival {
            slot,
            at: Instant::now(),
            rows: Err(CallError::Busy),
        };
        mailbox.put(arrival(1));
        mailbox.put(arrival(2));
        assert_eq!(mailbox.take().map(|a| a.slot), Some(1));
        assert_eq!(mailbox.wait(Duration::MAX).map(|a| a.slot), Some(2));
        let other = mailbox.clone();
        let sender = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            other.put(arrival(3));
        });
        let woken = mailbox.wait(Duration::from_secs(10));
        assert_eq!(woken.map(|a| a.slot), Some(3));
        sender.join().expect("sender");
    }
}
