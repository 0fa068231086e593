//! The calls of one connection that have no answer yet. No async and no sockets: the link's task
//! says what happens on the wire, compute threads say what they want.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ds4_proto::limits::MAX_TEXT_BYTES;
use ds4_proto::pb::{self, compute_reply, compute_request};
use ds4_proto::wire::clip;
use tokio::sync::mpsc;

use crate::cluster::fabric::{Arrival, Call, CallError, CallId, Clock, Forgotten, Link};
use crate::cluster::node_metrics::{NodeMetrics, Outcome};

/// Calls that may wait for one node. A coordinator has a handful; more means that the node takes
/// none, and that others have to.
const MAX_WAITING: usize = 1024;

#[derive(Debug)]
struct Waiting {
    call: Call,
    began: Instant,
    on_wire: bool,
}

/// What the link's task has to do after a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cluster) enum Next {
    Read,
    /// The node is about to stop: it gets no more work, but its answers are read.
    Drain,
    /// Drop the stream: the node is about to stop and owes nothing on it.
    Leave,
}

#[derive(Debug)]
struct State {
    outbound: mpsc::Sender<pb::ComputeRequest>,
    /// Calls that the node takes at once.
    window: usize,
    /// Unanswered ids, cancelled ones included.
    on_wire: HashSet<CallId>,
    /// By id, so that the oldest goes first.
    waiting: BTreeMap<CallId, Waiting>,
    next_id: CallId,
    draining: bool,
    /// Whether a call was answered.
    useful: bool,
    /// Why the connection is gone.
    lost: Option<String>,
}

/// The calls of one connection.
#[derive(Debug)]
pub(in crate::cluster) struct Calls {
    metrics: Arc<NodeMetrics>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

impl Calls {
    pub(in crate::cluster) fn new(
        metrics: Arc<NodeMetrics>,
        clock: Arc<dyn Clock>,
        outbound: mpsc::Sender<pb::ComputeRequest>,
        window: usize,
    ) -> Self {
        Calls {
            metrics,
            clock,
            state: Mutex::new(State {
                outbound,
                window,
                on_wire: HashSet::new(),
                waiting: BTreeMap::new(),
                next_id: 1,
                draining: false,
                useful: false,
                lost: None,
            }),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        // Each change leaves the state whole before anything in it can panic.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut state);
        self.metrics.in_flight(state.waiting.len());
        result
    }

    /// Sends waiting calls as far as the node's window and the connection allow.
    fn pump(&self, state: &mut State) {
        let now = self.clock.now();
        for waiting in state.take_overdue(now) {
            self.metrics.count(Outcome::Deadline);
            waiting.fail(CallError::Expired, now);
        }
        for (&id, waiting) in state.waiting.iter_mut().filter(|(_, w)| !w.on_wire) {
            if state.draining || state.on_wire.len() >= state.window {
                return;
            }
            let call = &waiting.call;
            let left = call.deadline.saturating_duration_since(now);
            let work = call.encoded.work(id, &call.tiles, left);
            let bytes = work.routes.len() + work.input.len();
            let message = pb::ComputeRequest {
                kind: Some(compute_request::Kind::Work(work)),
            };
            if state.outbound.try_send(message).is_err() {
                return;
            }
            self.metrics.sent(bytes);
            waiting.on_wire = true;
            state.on_wire.insert(id);
        }
    }

    /// The connection is gone: everything that waits has failed, and so will what comes.
    pub(in crate::cluster) fn close(&self, fault: &str) {
        self.with(|state| {
            state.lost = Some(fault.to_owned());
            state.on_wire.clear();
            let now = self.clock.now();
            for waiting in std::mem::take(&mut state.waiting).into_values() {
                self.metrics.count(Outcome::Lost);
                waiting.fail(CallError::Lost(fault.to_owned()), now);
            }
        });
    }

    /// Calls that have no answer yet.
    #[cfg(test)]
    pub(in crate::cluster) fn waiting(&self) -> usize {
        self.with(|state| state.waiting.len())
    }

    /// Whether the connection was good for an answer.
    pub(in crate::cluster) fn was_useful(&self) -> bool {
        self.with(|state| state.useful)
    }

    /// Takes a reply.
    ///
    /// # Errors
    /// The node broke the protocol; the stream is to be dropped.
    pub(in crate::cluster) fn reply(
        &self,
        kind: Option<compute_reply::Kind>,
    ) -> Result<Next, String> {
        let at = self.clock.now();
        match kind {
            Some(compute_reply::Kind::Rows(rows)) => {
                self.metrics.received(rows.rows.len());
                self.with(|state| {
                    let waiting = state.answered(rows.id)?;
                    self.pump(state);
                    state.useful = true;
                    if let Some(waiting) = waiting {
                        self.rows(waiting, rows.rows, at);
                    }
                    Ok(state.next())
                })
            }
            Some(compute_reply::Kind::Failure(failure)) => self.with(|state| {
                let waiting = state.answered(failure.id)?;
                let error = self.error(&failure);
                state.draining |= error == CallError::Draining;
                // A node that refuses everything is not worth hurrying back to.
                state.useful |= !matches!(error, CallError::Draining | CallError::Busy);
                if let Some(waiting) = waiting {
                    waiting.fail(error, at);
                }
                if state.draining {
                    state.refuse_unsent(at);
                }
                self.pump(state);
                Ok(state.next())
            }),
            Some(compute_reply::Kind::Welcome(_)) => Err("a second welcome".to_owned()),
            None => Err("a message of no known kind".to_owned()),
        }
    }

    fn rows(&self, waiting: Waiting, rows: bytes::Bytes, at: Instant) {
        let expected = waiting.call.expected;
        if rows.len() == expected {
            self.metrics
                .answered(at.saturating_duration_since(waiting.began));
            return waiting.call.deliver(Ok(rows), at);
        }
        self.metrics.count(Outcome::Malformed);
        let reason = format!("{} bytes of rows instead of {expected}", rows.len());
        waiting.fail(CallError::Malformed(reason), at);
    }

    fn error(&self, failure: &pb::Failure) -> CallError {
        let (outcome, error) = match failure.kind() {
            pb::FailureKind::Busy => (Outcome::Busy, CallError::Busy),
            pb::FailureKind::Draining => (Outcome::Draining, CallError::Draining),
            pb::FailureKind::Expired => (Outcome::Deadline, CallError::Expired),
            pb::FailureKind::Cancelled => (Outcome::Cancelled, CallError::Expired),
            _ => {
                let text = clip(&failure.message, MAX_TEXT_BYTES);
                (Outcome::Refused, CallError::Refused(text))
            }
        };
        // A cancelled call was counted when it was cancelled.
        if outcome != Outcome::Cancelled {
            self.metrics.count(outcome);
        }
        error
    }
}

impl Link for Calls {
    fn send(&self, call: Call) -> Result<CallId, CallError> {
        self.with(|state| {
            if let Some(fault) = &state.lost {
                return Err(CallError::Lost(fault.clone()));
            }
            if state.draining {
                return Err(CallError::Draining);
            }
            if state.waiting.len() >= MAX_WAITING {
                return Err(CallError::Busy);
            }
            let id = state.next_id;
            state.next_id += 1;
            let waiting = Waiting {
                call,
                began: self.clock.now(),
                on_wire: false,
            };
            state.waiting.insert(id, waiting);
            self.pump(state);
            Ok(id)
        })
    }

    fn cancel(&self, id: CallId, why: Forgotten) {
        self.with(|state| {
            let Some(waiting) = state.waiting.remove(&id) else {
                return;
            };
            self.metrics.count(match why {
                Forgotten::Cancelled => Outcome::Cancelled,
                Forgotten::Late => Outcome::Deadline,
            });
            if waiting.on_wire {
                let cancel = compute_request::Kind::Cancel(pb::Cancel { id });
                // A cancel that finds no room is only a hint lost.
                let _ = state
                    .outbound
                    .try_send(pb::ComputeRequest { kind: Some(cancel) });
            }
        });
    }
}

impl State {
    /// Takes an answered call off the wire and out of the waiting ones, where a cancelled one is
    /// not found.
    fn answered(&mut self, id: CallId) -> Result<Option<Waiting>, String> {
        if !self.on_wire.remove(&id) {
            return Err(format!("an answer to call {id}, which is not in flight"));
        }
        Ok(self.waiting.remove(&id))
    }

    /// What was not sent yet never will be.
    fn refuse_unsent(&mut self, now: Instant) {
        let unsent = self.waiting.extract_if(.., |_, waiting| !waiting.on_wire);
        for (_, waiting) in unsent {
            waiting.fail(CallError::Draining, now);
        }
    }

    /// Calls that waited for room on the wire until nobody wanted their answers any more.
    fn take_overdue(&mut self, now: Instant) -> Vec<Waiting> {
        let overdue = |_: &CallId, w: &mut Waiting| !w.on_wire && w.call.deadline <= now;
        let taken = self.waiting.extract_if(.., overdue);
        taken.map(|(_, waiting)| waiting).collect()
    }

    fn next(&self) -> Next {
        match (self.draining, self.on_wire.is_empty()) {
            (true, true) => Next::Leave,
            (true, false) => Next::Drain,
            (false, _) => Next::Read,
        }
    }
}

impl Waiting {
    fn fail(self, error: CallError, now: Instant) {
        self.call.deliver(Err(error), now);
    }
}

impl Call {
    fn deliver(self, rows: Result<bytes::Bytes, CallError>, at: Instant) {
        let slot = self.slot;
        self.to.put(Arrival { slot, at, rows });
    }
}

#[cfg(test)]
mod tests;
