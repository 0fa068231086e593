//! The unanswered calls of one connection. No async and no sockets: compute threads send and cancel
//! calls, the link's task reports what happens on the wire.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ds4_proto::limits::MAX_TEXT_BYTES;
use ds4_proto::pb::{self, compute_reply, compute_request};
use ds4_proto::wire::{ReceivedRows, RowsFault, clip, request};
use tokio::sync::mpsc;

use crate::cluster::node_metrics::{CallOutcome, NodeMetrics};
use crate::cluster::transport::{
    CallError, CallId, CallReply, CancelReason, Clock, Corruption, ExpertCall, NodeLink,
};

/// Most unanswered calls. A coordinator has a handful; this many mean that the node accepts none,
/// and that other replicas have to do the work.
const MAX_UNANSWERED: usize = 1024;

#[derive(Debug)]
struct UnansweredCall {
    call: ExpertCall,
    /// When the caller sent it.
    began: Instant,
    /// Whether it has been written to the connection.
    on_wire: bool,
    /// Checksum of the message, once it is written.
    checksum: u64,
}

/// What the link's task has to do after a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cluster) enum StreamAction {
    /// Read on.
    Read,
    /// The node is draining: it gets no more calls, but its replies are read.
    Drain,
    /// The node is draining and owes no reply: drop the stream.
    Close,
}

#[derive(Debug)]
struct CallsState {
    outbound: mpsc::Sender<pb::ComputeRequest>,
    /// Most calls on the wire.
    window: usize,
    /// Ids of the calls on the wire that the node has not answered, cancelled ones included.
    on_wire: HashSet<CallId>,
    /// Calls whose replies are awaited, by id, so that the oldest is written first.
    unanswered: BTreeMap<CallId, UnansweredCall>,
    next_id: CallId,
    draining: bool,
    /// Whether any call was answered.
    useful: bool,
    /// Why the connection has ended.
    lost: Option<String>,
}

/// The calls of one connection, shared by the callers and the link's task.
#[derive(Debug)]
pub(in crate::cluster) struct ConnectionCalls {
    metrics: Arc<NodeMetrics>,
    clock: Arc<dyn Clock>,
    state: Mutex<CallsState>,
}

impl ConnectionCalls {
    pub(in crate::cluster) fn new(
        metrics: Arc<NodeMetrics>,
        clock: Arc<dyn Clock>,
        outbound: mpsc::Sender<pb::ComputeRequest>,
        window: usize,
    ) -> Self {
        ConnectionCalls {
            metrics,
            clock,
            state: Mutex::new(CallsState {
                outbound,
                window,
                on_wire: HashSet::new(),
                unanswered: BTreeMap::new(),
                next_id: 1,
                draining: false,
                useful: false,
                lost: None,
            }),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut CallsState) -> T) -> T {
        // Every change leaves the state consistent before anything in it can panic.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut state);
        self.metrics.in_flight(state.unanswered.len());
        result
    }

    /// Writes calls as far as the node's window and the channel allow.
    fn pump(&self, state: &mut CallsState) {
        let now = self.clock.now();
        for entry in state.take_overdue(now) {
            self.metrics.count(CallOutcome::Deadline);
            entry.fail(CallError::Expired, now);
        }
        for (&id, entry) in state.unanswered.iter_mut().filter(|(_, w)| !w.on_wire) {
            if state.draining || state.on_wire.len() >= state.window {
                return;
            }
            let call = &entry.call;
            let left = call.deadline.saturating_duration_since(now);
            let work = call.encoded.work(id, &call.tiles, left);
            let (bytes, checksum) = (work.routes.len() + work.input.len(), work.checksum);
            let message = request(compute_request::Kind::Work(work));
            if state.outbound.try_send(message).is_err() {
                return;
            }
            self.metrics.sent(bytes);
            entry.on_wire = true;
            entry.checksum = checksum;
            state.on_wire.insert(id);
        }
    }

    /// The connection has ended: all unanswered calls fail with `reason`, and so do later ones.
    pub(in crate::cluster) fn close(&self, reason: &str) {
        self.with(|state| {
            state.lost = Some(reason.to_owned());
            state.on_wire.clear();
            let now = self.clock.now();
            for entry in std::mem::take(&mut state.unanswered).into_values() {
                self.metrics.count(CallOutcome::Lost);
                entry.fail(CallError::Lost(reason.to_owned()), now);
            }
        });
    }

    /// Number of unanswered calls.
    #[cfg(test)]
    pub(in crate::cluster) fn unanswered(&self) -> usize {
        self.with(|state| state.unanswered.len())
    }

    /// Whether any call was answered on this connection.
    pub(in crate::cluster) fn was_useful(&self) -> bool {
        self.with(|state| state.useful)
    }

    /// Handles a message from the node.
    ///
    /// # Errors
    /// The node broke the protocol; says how. The stream must be dropped.
    pub(in crate::cluster) fn on_reply(
        &self,
        kind: Option<compute_reply::Kind>,
    ) -> Result<StreamAction, String> {
        let at = self.clock.now();
        match kind {
            Some(compute_reply::Kind::Rows(rows)) => {
                self.metrics.received(rows.rows.len());
                self.with(|state| {
                    let entry = state.answered(rows.id)?;
                    self.pump(state);
                    state.useful = true;
                    if let Some(entry) = entry {
                        self.rows(entry, rows, at);
                    }
                    Ok(state.next())
                })
            }
            Some(compute_reply::Kind::Failure(failure)) => self.with(|state| {
                let entry = state.answered(failure.id)?;
                let error = self.error(&failure);
                state.draining |= error == CallError::Draining;
                // Reconnecting at once to a node that accepts nothing would be of no use.
                state.useful |= !matches!(error, CallError::Draining | CallError::Busy);
                if let Some(entry) = entry {
                    entry.fail(error, at);
                }
                if state.draining {
                    state.fail_unsent(at);
                }
                self.pump(state);
                Ok(state.next())
            }),
            Some(compute_reply::Kind::Welcome(_)) => Err("it sent a second welcome".to_owned()),
            None => Err("it sent a message of an unknown kind".to_owned()),
        }
    }

    fn rows(&self, entry: UnansweredCall, rows: pb::Rows, at: Instant) {
        let (expected, found) = (entry.call.reply_bytes, rows.rows.len());
        let rows = ReceivedRows::new(rows, entry.checksum);
        if found == expected {
            self.metrics
                .answered(at.saturating_duration_since(entry.began));
            return entry.call.deliver(Ok(rows), at);
        }
        if rows.check() == Err(RowsFault::Checksum) {
            self.metrics.count(CallOutcome::Corrupt);
            return entry.fail(CallError::Corrupt(Corruption::Rows), at);
        }
        self.metrics.count(CallOutcome::Malformed);
        let reason = format!("{found} bytes of rows instead of {expected}");
        entry.fail(CallError::Malformed(reason), at);
    }

    fn error(&self, failure: &pb::Failure) -> CallError {
        let (outcome, error) = match failure.kind() {
            pb::FailureKind::Busy => (CallOutcome::Busy, CallError::Busy),
            pb::FailureKind::Draining => (CallOutcome::Draining, CallError::Draining),
            pb::FailureKind::Expired => (CallOutcome::Deadline, CallError::Expired),
            pb::FailureKind::Cancelled => (CallOutcome::Cancelled, CallError::Expired),
            pb::FailureKind::Corrupt => {
                (CallOutcome::Corrupt, CallError::Corrupt(Corruption::Call))
            }
            _ => {
                let text = clip(&failure.message, MAX_TEXT_BYTES);
                (CallOutcome::Refused, CallError::Refused(text))
            }
        };
        // The cancellation was counted already.
        if outcome != CallOutcome::Cancelled {
            self.metrics.count(outcome);
        }
        error
    }
}

impl NodeLink for ConnectionCalls {
    fn send(&self, call: ExpertCall) -> Result<CallId, CallError> {
        self.with(|state| {
            if let Some(reason) = &state.lost {
                return Err(CallError::Lost(reason.clone()));
            }
            if state.draining {
                return Err(CallError::Draining);
            }
            if state.unanswered.len() >= MAX_UNANSWERED {
                return Err(CallError::Busy);
            }
            let id = state.next_id;
            state.next_id += 1;
            let entry = UnansweredCall {
                call,
                began: self.clock.now(),
                on_wire: false,
                checksum: 0,
            };
            state.unanswered.insert(id, entry);
            self.pump(state);
            Ok(id)
        })
    }

    fn cancel(&self, id: CallId, why: CancelReason) {
        self.with(|state| {
            let Some(entry) = state.unanswered.remove(&id) else {
                return;
            };
            self.metrics.count(match why {
                CancelReason::Unwanted => CallOutcome::Cancelled,
                CancelReason::DeadlinePassed => CallOutcome::Deadline,
            });
            if entry.on_wire {
                let cancel = compute_request::Kind::Cancel(pb::Cancel { id });
                // A cancel is only a hint, so it may be lost when the channel is full.
                let _ = state.outbound.try_send(request(cancel));
            }
        });
    }
}

impl CallsState {
    /// Removes an answered call; returns it unless it was cancelled.
    fn answered(&mut self, id: CallId) -> Result<Option<UnansweredCall>, String> {
        if !self.on_wire.remove(&id) {
            return Err(format!("it answered call {id}, which is not in flight"));
        }
        Ok(self.unanswered.remove(&id))
    }

    /// Fails the calls that were not written.
    fn fail_unsent(&mut self, now: Instant) {
        let unsent = self.unanswered.extract_if(.., |_, entry| !entry.on_wire);
        for (_, entry) in unsent {
            entry.fail(CallError::Draining, now);
        }
    }

    /// Removes the calls whose deadline passed before they could be written.
    fn take_overdue(&mut self, now: Instant) -> Vec<UnansweredCall> {
        let overdue = |_: &CallId, w: &mut UnansweredCall| !w.on_wire && w.call.deadline <= now;
        let taken = self.unanswered.extract_if(.., overdue);
        taken.map(|(_, entry)| entry).collect()
    }

    fn next(&self) -> StreamAction {
        match (self.draining, self.on_wire.is_empty()) {
            (true, true) => StreamAction::Close,
            (true, false) => StreamAction::Drain,
            (false, _) => StreamAction::Read,
        }
    }
}

impl UnansweredCall {
    fn fail(self, error: CallError, now: Instant) {
        self.call.deliver(Err(error), now);
    }
}

impl ExpertCall {
    fn deliver(self, rows: Result<ReceivedRows, CallError>, at: Instant) {
        let tag = self.tag;
        self.reply_to.put(CallReply {
            tag,
            received: at,
            rows,
        });
    }
}

#[cfg(test)]
mod tests;
