//! The calls to one node that have no answer yet. No async and no sockets: the link's task says
//! what happens on the wire, compute threads say what they want.

use std::collections::{BTreeMap, HashSet};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use ds4_proto::limits::MAX_TEXT_BYTES;
use ds4_proto::pb::{self, compute_reply, compute_request};
use ds4_proto::wire::{EncodedBatch, TileSet, clip};
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
}

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
            if state.on_wire.len() >= state.window {
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

    /// Why there is no connection; `None` if there is one.
    pub(super) fn fault(&self) -> Option<String> {
        self.with(|state| state.outbound.is_none().then(|| state.fault.clone()))
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
                    Ok(Next::Read)
                })
            }
            Some(compute_reply::Kind::Failure(failure)) => {
                self.with(|state| self.failure(state, &failure))
            }
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

    fn failure(&self, state: &mut State, failure: &pb::Failure) -> Result<Next, String> {
        let id = failure.id;
        let kind = failure.kind();
        if matches!(kind, pb::FailureKind::Busy | pb::FailureKind::Draining) {
            if !state.on_wire.remove(&id) {
                return Err(format!("a refusal of call {id}, which is not in flight"));
            }
            if let Some(waiting) = state.waiting.get_mut(&id) {
                waiting.on_wire = false;
            }
            if kind == pb::FailureKind::Busy {
                return Ok(Next::Retry);
            }
            // The node answers what it has and then ends the stream; nothing new until then.
            state.window = 0;
            return Ok(Next::Read);
        }
        let Some(Waiting { request, .. }) = self.answered(state, id)? else {
            return Ok(Next::Read);
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
        Ok(Next::Read)
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
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, sync_channel};
    use std::time::Duration;

    use ds4_common::expert::{ExpertBatch, ExpertInput, Route};
    use ds4_common::tiles::Grid;

    const GRID: Grid = Grid {
        experts: 1,
        blocks: 1,
    };

    struct Bench {
        calls: Calls,
        arrivals: SyncSender<Arrival>,
        inbox: Receiver<Arrival>,
    }

    fn bench() -> Bench {
        let (arrivals, inbox) = sync_channel(16);
        Bench {
            calls: Calls::new("node".into()),
            arrivals,
            inbox,
        }
    }

    impl Bench {
        fn submit(&self, slot: usize, deadline: Duration) -> u64 {
            let batch = ExpertBatch {
                layer: 0,
                tokens: 1,
                used: 1,
                routes: vec![Route {
                    expert: 0,
                    weight: 1.0,
                }],
                input: ExpertInput::F32(vec![0.0]),
                round: false,
            };
            let request = Request {
                encoded: EncodedBatch::new(&batch, 0..1),
                tiles: Arc::new(TileSet::new(GRID, vec![GRID.whole()]).expect("tiles")),
                layer: 0,
                expected: 4,
                began: Instant::now(),
                deadline: Instant::now() + deadline,
                slot,
                arrivals: self.arrivals.clone(),
            };
            self.calls.submit(request).expect("taken")
        }

        fn rows(&self, id: u64) -> Result<Next, String> {
            self.calls.reply(Some(compute_reply::Kind::Rows(pb::Rows {
                id,
                rows: Bytes::from_static(&[0; 4]),
                ..Default::default()
            })))
        }

        fn failure(&self, id: u64, kind: pb::FailureKind) -> Result<Next, String> {
            self.calls
                .reply(Some(compute_reply::Kind::Failure(pb::Failure {
                    id,
                    kind: kind.into(),
                    message: String::new(),
                })))
        }
    }

    /// Ids of the work that was written, cancels as negative ids.
    fn written(wire: &mut mpsc::Receiver<pb::ComputeRequest>) -> Vec<i64> {
        let mut ids = Vec::new();
        while let Ok(message) = wire.try_recv() {
            match message.kind.expect("a kind") {
                compute_request::Kind::Work(work) => ids.push(work.id as i64),
                compute_request::Kind::Cancel(cancel) => ids.push(-(cancel.id as i64)),
                compute_request::Kind::Hello(_) => panic!("the link says hello"),
            }
        }
        ids
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn the_window_is_kept_and_answers_make_room() {
        let bench = bench();
        let (outbound, mut wire) = mpsc::channel(64);
        bench.calls.connected(outbound, 2);
        for slot in 0..4 {
            bench.submit(slot, LONG);
        }
        assert_eq!(written(&mut wire), [1, 2]);
        assert_eq!(bench.rows(2), Ok(Next::Read));
        assert_eq!(bench.inbox.try_recv().expect("arrival").slot, 1);
        assert_eq!(written(&mut wire), [3]);
    }

    #[test]
    fn what_a_lost_connection_left_goes_out_again_oldest_first() {
        let bench = bench();
        let (outbound, mut wire) = mpsc::channel(64);
        bench.submit(0, LONG);
        bench.calls.connected(outbound, 8);
        bench.submit(1, LONG);
        bench.submit(2, Duration::ZERO);
        bench.rows(1).expect("in flight");
        assert_eq!(written(&mut wire), [1, 2]);
        bench.calls.disconnected("cut");
        assert_eq!(bench.calls.fault().as_deref(), Some("cut"));
        bench.submit(3, LONG);
        let (outbound, mut wire) = mpsc::channel(64);
        bench.calls.connected(outbound, 8);
        assert_eq!(
            written(&mut wire),
            [2, 4],
            "without the answered and the expired one"
        );
        assert!(bench.rows(1).is_err(), "an answer of the old connection");
    }

    #[test]
    fn cancelled_calls_hold_their_place_until_the_node_has_answered() {
        let bench = bench();
        let (outbound, mut wire) = mpsc::channel(64);
        bench.calls.connected(outbound, 1);
        let first = bench.submit(0, LONG);
        let second = bench.submit(1, LONG);
        bench.calls.cancel(first, Outcome::Cancelled);
        assert_eq!(written(&mut wire), [1, -1]);
        assert_eq!(
            bench.failure(first, pb::FailureKind::Cancelled),
            Ok(Next::Read)
        );
        assert_eq!(written(&mut wire), [second as i64]);
        assert!(bench.inbox.try_recv().is_err());
    }

    #[test]
    fn busy_asks_for_a_pause_and_draining_for_another_stream() {
        let bench = bench();
        let (outbound, mut wire) = mpsc::channel(64);
        bench.calls.connected(outbound, 8);
        bench.submit(0, LONG);
        written(&mut wire);
        assert_eq!(bench.failure(1, pb::FailureKind::Busy), Ok(Next::Retry));
        bench.calls.pump();
        assert_eq!(written(&mut wire), [1]);
        assert_eq!(bench.failure(1, pb::FailureKind::Draining), Ok(Next::Read));
        bench.calls.pump();
        assert!(written(&mut wire).is_empty());
        let (outbound, mut wire) = mpsc::channel(64);
        bench.calls.disconnected("stopped");
        bench.calls.connected(outbound, 8);
        assert_eq!(written(&mut wire), [1]);
    }

    #[test]
    fn closing_answers_everything() {
        let bench = bench();
        bench.submit(0, LONG);
        bench.calls.close();
        let arrival = bench.inbox.try_recv().expect("arrival");
        assert!(matches!(arrival.rows, Err(ExpertError::Closed)));
    }
}
