//! The calls to one node that have no answer yet. No async and no sockets: the link's task says
//! what happens on the wire, compute threads say what they want.

use std::collections::{BTreeMap, HashSet};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use ds4_common::tiles::TileSet;
use ds4_proto::limits::MAX_TEXT_BYTES;
use ds4_proto::pb::{self, compute_reply, compute_request};
use ds4_proto::wire::{EncodedBatch, clip};
use tokio::sync::mpsc;

use super::node_metrics::{NodeMetrics, Outcome};
use crate::engine::ExpertError;

/// Calls that may wait for one node. A coordinator has a handful; more means that something
/// upstream does not wait for its answers.
const MAX_WAITING: usize = 4096;

/// A node's answer to one call, or why there is none.
#[derive(Debug)]
pub(super) struct Arrival {
    /// The place that the caller gave to the call.
    pub(super) slot: usize,
    pub(super) rows: Result<Bytes, ExpertError>,
}

/// One call as a compute thread hands it over.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) encoded: EncodedBatch,
    pub(super) tiles: Arc<TileSet>,
    pub(super) layer: usize,
    /// Bytes of the rows that answer the call.
    pub(super) expected: usize,
    pub(super) began: Instant,
    pub(super) deadline: Instant,
    pub(super) slot: usize,
    /// Has room for this call's arrival.
    pub(super) arrivals: SyncSender<Arrival>,
}

#[derive(Debug)]
struct Waiting {
    request: Request,
    on_wire: bool,
}

/// What the link's task has to do after a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Read,
    /// Call [`Calls::pump`] again after a pause: the node was busy.
    Retry,
    /// Drop the stream: the node is about to stop and owes nothing on it.
    Leave,
}

/// Why a node that is about to stop gets no work.
pub(super) const STOPPING: &str = "the node is about to stop";

#[derive(Debug)]
struct State {
    outbound: Option<mpsc::Sender<pb::ComputeRequest>>,
    /// Calls that the node takes at once.
    window: usize,
    /// Unanswered ids of this connection, cancelled ones included.
    on_wire: HashSet<u64>,
    /// By id, so that the oldest goes first when a connection comes back.
    waiting: BTreeMap<u64, Waiting>,
    next_id: u64,
    /// Whether the node takes no more work on this connection.
    draining: bool,
    /// Whether a call was answered on this connection.
    useful: bool,
    /// Why there is no connection.
    fault: String,
    closed: bool,
}

/// The calls of one node.
#[derive(Debug)]
pub(super) struct Calls {
    node: Arc<str>,
    metrics: NodeMetrics,
    state: Mutex<State>,
}

impl Calls {
    pub(super) fn new(node: Arc<str>) -> Self {
        Calls {
            metrics: NodeMetrics::new(&node),
            node,
            state: Mutex::new(State {
                outbound: None,
                window: 0,
                on_wire: HashSet::new(),
                waiting: BTreeMap::new(),
                next_id: 1,
                draining: false,
                useful: false,
                fault: "no connection was made yet".to_owned(),
                closed: false,
            }),
        }
    }

    pub(super) fn node(&self) -> &Arc<str> {
        &self.node
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        // Each change leaves the state whole before anything in it can panic.
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes a call: onto the wire now if there is a connection with room, else later. Never
    /// blocks. Returns its id.
    ///
    /// # Errors
    /// Far too much waits already, or the link was closed.
    pub(super) fn submit(&self, request: Request) -> Result<u64, ExpertError> {
        self.with(|state| {
            if state.closed {
                return Err(ExpertError::Closed);
            }
            if state.waiting.len() >= MAX_WAITING {
                return Err(ExpertError::Refused {
                    node: self.node.to_string(),
                    reason: format!("{MAX_WAITING} calls wait for it already"),
                });
            }
            let id = state.next_id;
            state.next_id += 1;
            let waiting = Waiting {
                request,
                on_wire: false,
            };
            state.waiting.insert(id, waiting);
            self.pump_state(state);
            Ok(id)
        })
    }

    /// Forgets a call, for the reason `outcome`, and tells the node if it has heard of it.
    pub(super) fn cancel(&self, id: u64, outcome: Outcome) {
        self.with(|state| {
            let Some(waiting) = state.waiting.remove(&id) else {
                return;
            };
            self.metrics.count(outcome);
            if let (true, Some(outbound)) = (waiting.on_wire, &state.outbound) {
                let cancel = compute_request::Kind::Cancel(pb::Cancel { id });
                // A cancel that finds no room is only a hint lost.
                let _ = outbound.try_send(pb::ComputeRequest { kind: Some(cancel) });
            }
        });
    }

    /// Sends waiting calls as far as the node's window and the connection allow.
    pub(super) fn pump(&self) {
        self.with(|state| self.pump_state(state));
    }

    fn pump_state(&self, state: &mut State) {
        let Some(outbound) = &state.outbound else {
            return;
        };
        let now = Instant::now();
        for (&id, waiting) in state.waiting.iter_mut().filter(|(_, w)| !w.on_wire) {
            if state.draining || state.on_wire.len() >= state.window {
                return;
            }
            let left = waiting.request.deadline.saturating_duration_since(now);
            if left.is_zero() {
                continue;
            }
            let request = &waiting.request;
            let work = request.encoded.work(id, &request.tiles, left);
            let bytes = work.routes.len() + work.input.len();
            let message = pb::ComputeRequest {
                kind: Some(compute_request::Kind::Work(work)),
            };
            if outbound.try_send(message).is_err() {
                return;
            }
            self.metrics.sent(bytes);
            waiting.on_wire = true;
            state.on_wire.insert(id);
        }
    }

    /// A stream is open: everything that waits goes out, what an earlier stream lost included.
    pub(super) fn connected(&self, outbound: mpsc::Sender<pb::ComputeRequest>, window: usize) {
        self.with(|state| {
            state.outbound = Some(outbound);
            state.window = window;
            state.draining = false;
            state.useful = false;
            self.pump_state(state);
        });
    }

    /// The stream is gone; calls wait for the next one until their deadlines.
    pub(super) fn disconnected(&self, fault: &str) {
        self.with(|state| {
            state.outbound = None;
            fault.clone_into(&mut state.fault);
            state.on_wire.clear();
            for waiting in state.waiting.values_mut() {
                waiting.on_wire = false;
            }
        });
    }

    /// No call will ever be answered again.
    pub(super) fn close(&self) {
        self.with(|state| {
            state.closed = true;
            state.outbound = None;
            for waiting in std::mem::take(&mut state.waiting).into_values() {
                waiting.request.deliver(Err(ExpertError::Closed));
            }
        });
    }

    /// Why no work goes out; `None` if it does.
    pub(super) fn fault(&self) -> Option<String> {
        self.with(|state| match state.outbound {
            None => Some(state.fault.clone()),
            Some(_) if state.draining => Some(STOPPING.to_owned()),
            Some(_) => None,
        })
    }

    /// Whether the connection, or the last one, was good for an answer.
    pub(super) fn was_useful(&self) -> bool {
        self.with(|state| state.useful)
    }

    /// Takes a reply.
    ///
    /// # Errors
    /// The node broke the protocol; the stream is to be dropped.
    pub(super) fn reply(&self, kind: Option<compute_reply::Kind>) -> Result<Next, String> {
        match kind {
            Some(compute_reply::Kind::Rows(rows)) => {
                self.metrics.received(rows.rows.len());
                self.with(|state| {
                    let waiting = self.answered(state, rows.id)?;
                    if let Some(Waiting { request, .. }) = waiting {
                        self.rows(request, rows.rows);
                    }
                    Ok(state.next())
                })
            }
            Some(compute_reply::Kind::Failure(failure)) => self.with(|state| {
                let retry = self.failure(state, &failure)?;
                Ok(if retry { Next::Retry } else { state.next() })
            }),
            Some(compute_reply::Kind::Welcome(_)) => Err("a second welcome".to_owned()),
            None => Err("a message of no known kind".to_owned()),
        }
    }

    /// Takes an answered call off the wire and out of the waiting ones, where a cancelled one is
    /// not found; the next goes out.
    fn answered(&self, state: &mut State, id: u64) -> Result<Option<Waiting>, String> {
        if !state.on_wire.remove(&id) {
            return Err(format!("an answer to call {id}, which is not in flight"));
        }
        state.useful = true;
        let waiting = state.waiting.remove(&id);
        self.pump_state(state);
        Ok(waiting)
    }

    fn rows(&self, request: Request, rows: Bytes) {
        if rows.len() == request.expected {
            self.metrics.answered(request.began.elapsed());
            return request.deliver(Ok(rows));
        }
        self.metrics.count(Outcome::Malformed);
        let reason = format!(
            "{} bytes of rows instead of {}",
            rows.len(),
            request.expected
        );
        request.deliver(Err(ExpertError::Malformed {
            node: self.node.to_string(),
            reason,
        }));
    }

    /// Returns whether the call is to be sent again after a pause.
    fn failure(&self, state: &mut State, failure: &pb::Failure) -> Result<bool, String> {
        let id = failure.id;
        let kind = failure.kind();
        if matches!(kind, pb::FailureKind::Busy | pb::FailureKind::Draining) {
            if !state.on_wire.remove(&id) {
                return Err(format!("a refusal of call {id}, which is not in flight"));
            }
            if let Some(waiting) = state.waiting.get_mut(&id) {
                waiting.on_wire = false;
            }
            state.draining |= kind == pb::FailureKind::Draining;
            return Ok(!state.draining);
        }
        let Some(Waiting { request, .. }) = self.answered(state, id)? else {
            return Ok(false);
        };
        let node = self.node.to_string();
        let error = if kind == pb::FailureKind::Expired {
            self.metrics.count(Outcome::Deadline);
            ExpertError::Deadline {
                node,
                layer: request.layer,
                deadline_ms: (request.deadline - request.began).as_millis() as u64,
            }
        } else {
            self.metrics.count(Outcome::Refused);
            ExpertError::Refused {
                node,
                reason: clip(&failure.message, MAX_TEXT_BYTES),
            }
        };
        request.deliver(Err(error));
        Ok(false)
    }
}

impl State {
    /// What follows a message that needs no pause.
    fn next(&self) -> Next {
        if self.draining && self.on_wire.is_empty() {
            return Next::Leave;
        }
        Next::Read
    }
}

impl Request {
    fn deliver(self, rows: Result<Bytes, ExpertError>) {
        // The channel has room for every call's arrival; a caller that is gone needs none.
        let _ = self.arrivals.try_send(Arrival {
            slot: self.slot,
            rows,
        });
    }
}

#[cfg(test)]
mod tests;
