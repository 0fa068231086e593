use super::*;
use std::time::Duration;

use bytes::Bytes;
use ds4_common::expert::{BatchFields, ExpertBatch, ExpertInput, MoeShape, Route};
use ds4_common::tiles::{Grid, TileSet};
use ds4_proto::wire::{EncodedBatch, rows_checksum, rows_message};

use crate::cluster::transport::{Mailbox, SystemClock};

const GRID: Grid = Grid {
    experts: 1,
    blocks: 1,
};

struct Bench {
    calls: ConnectionCalls,
    wire: mpsc::Receiver<pb::ComputeRequest>,
    mailbox: Mailbox,
}

fn bench(window: usize) -> Bench {
    let (outbound, wire) = mpsc::channel(64);
    let metrics = Arc::new(NodeMetrics::new("node"));
    Bench {
        calls: ConnectionCalls::new(metrics, Arc::new(SystemClock), outbound, window),
        wire,
        mailbox: Mailbox::default(),
    }
}

impl Bench {
    fn send(&self, tag: u64, deadline: Duration) -> Result<CallId, CallError> {
        let shape = MoeShape {
            layers: 1,
            hidden: 1,
            experts_used: 1,
            grid: GRID,
        };
        let fields = BatchFields {
            layer: 0,
            tokens: 1,
            routes: vec![Route {
                expert: 0,
                weight: 1.0,
            }],
            input: ExpertInput::F32(vec![0.0]),
            round: false,
        };
        let batch = ExpertBatch::new(shape, fields).expect("a legal batch");
        self.calls.send(ExpertCall {
            encoded: EncodedBatch::new(&batch, 0..1),
            tiles: Arc::new(TileSet::whole(GRID)),
            reply_bytes: 4,
            deadline: Instant::now() + deadline,
            tag,
            reply_to: self.mailbox.clone(),
        })
    }

    fn rows(&self, id: u64) -> Result<StreamAction, String> {
        self.calls
            .on_reply(Some(compute_reply::Kind::Rows(pb::Rows {
                id,
                rows: Bytes::from_static(&[0; 4]),
                ..Default::default()
            })))
    }

    fn failure(&self, id: u64, kind: pb::FailureKind) -> Result<StreamAction, String> {
        self.calls
            .on_reply(Some(compute_reply::Kind::Failure(pb::Failure {
                id,
                kind: kind.into(),
                message: String::new(),
            })))
    }

    /// Tags and errors of the replies that arrived.
    fn arrived(&self) -> Vec<(u64, Option<CallError>)> {
        std::iter::from_fn(|| self.mailbox.take())
            .map(|reply| (reply.tag, reply.rows.err()))
            .collect()
    }

    /// Ids of the work that was written, cancels as negative ids.
    fn written(&mut self) -> Vec<i64> {
        let mut ids = Vec::new();
        while let Ok(message) = self.wire.try_recv() {
            match message.kind.expect("a kind") {
                compute_request::Kind::Work(work) => ids.push(work.id as i64),
                compute_request::Kind::Cancel(cancel) => ids.push(-(cancel.id as i64)),
                compute_request::Kind::Hello(_) => panic!("the link says hello"),
            }
        }
        ids
    }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn the_window_is_respected_and_replies_make_room() {
    let mut bench = bench(2);
    for tag in 0..4 {
        bench.send(tag, LONG).expect("accepted");
    }
    assert_eq!(bench.written(), [1, 2]);
    assert_eq!(bench.rows(2), Ok(StreamAction::Read));
    assert_eq!(bench.arrived(), [(1, None)]);
    assert_eq!(bench.written(), [3]);
    assert!(bench.rows(4).is_err(), "it was not sent");
    assert!(bench.rows(2).is_err(), "it was answered");
}

#[test]
fn a_lost_connection_fails_all_calls_and_later_ones() {
    let mut bench = bench(1);
    bench.send(0, LONG).expect("accepted");
    bench.send(1, LONG).expect("accepted");
    assert_eq!(bench.written(), [1]);
    bench.calls.close("cut");
    let lost = CallError::Lost("cut".to_owned());
    let both = [(0, Some(lost.clone())), (1, Some(lost.clone()))];
    assert_eq!(bench.arrived(), both);
    assert_eq!(bench.send(2, LONG), Err(lost));
    assert!(bench.arrived().is_empty());
}

#[test]
fn cancelled_calls_occupy_the_window_until_the_node_has_answered() {
    let mut bench = bench(1);
    let first = bench.send(0, LONG).expect("accepted");
    let second = bench.send(1, LONG).expect("accepted");
    bench.calls.cancel(first, CancelReason::Unwanted);
    assert_eq!(bench.written(), [1, -1]);
    let answer = bench.failure(first, pb::FailureKind::Cancelled);
    assert_eq!(answer, Ok(StreamAction::Read));
    assert_eq!(bench.written(), [second as i64]);
    bench.calls.cancel(second, CancelReason::DeadlinePassed);
    bench.calls.cancel(second, CancelReason::DeadlinePassed);
    assert_eq!(bench.written(), [-(second as i64)]);
    assert!(bench.arrived().is_empty());
}

#[test]
fn an_overdue_call_is_not_written_and_makes_room() {
    let mut bench = bench(8);
    bench.send(0, Duration::ZERO).expect("accepted");
    assert_eq!(bench.arrived(), [(0, Some(CallError::Expired))]);
    bench.send(1, LONG).expect("accepted");
    assert_eq!(bench.written(), [2]);
}

#[test]
fn busy_is_reported_and_draining_fails_what_was_not_written() {
    let mut bench = bench(2);
    for tag in 0..4 {
        bench.send(tag, LONG).expect("accepted");
    }
    assert_eq!(bench.written(), [1, 2]);
    assert_eq!(
        bench.failure(1, pb::FailureKind::Busy),
        Ok(StreamAction::Read)
    );
    assert_eq!(bench.arrived(), [(0, Some(CallError::Busy))]);
    assert_eq!(bench.written(), [3]);
    assert_eq!(
        bench.failure(2, pb::FailureKind::Draining),
        Ok(StreamAction::Drain)
    );
    let draining = Some(CallError::Draining);
    assert_eq!(bench.arrived(), [(1, draining.clone()), (3, draining)]);
    assert_eq!(bench.send(4, LONG), Err(CallError::Draining));
    assert!(!bench.calls.was_useful());
    assert_eq!(
        bench.rows(3),
        Ok(StreamAction::Close),
        "the node owes nothing"
    );
    assert_eq!(bench.arrived(), [(2, None)]);
    assert!(bench.calls.was_useful());
}

#[test]
fn a_node_that_accepts_nothing_is_busy_before_memory_is_full() {
    let bench = bench(1);
    for tag in 0..MAX_UNANSWERED as u64 {
        bench.send(tag, LONG).expect("accepted");
    }
    assert_eq!(bench.send(0, LONG), Err(CallError::Busy));
}

#[test]
fn rows_of_another_length_are_malformed() {
    let mut bench = bench(1);
    bench.send(7, LONG).expect("accepted");
    let message = bench.wire.try_recv().expect("written");
    let Some(compute_request::Kind::Work(work)) = message.kind else {
        panic!("{message:?}");
    };
    let two = [0.0; 2];
    let rows = rows_message(1, &two, rows_checksum(&two, work.checksum), 0, 0);
    let rows = compute_reply::Kind::Rows(rows);
    assert_eq!(bench.calls.on_reply(Some(rows)), Ok(StreamAction::Read));
    let reason = "8 bytes of rows instead of 4".to_owned();
    assert_eq!(bench.arrived(), [(7, Some(CallError::Malformed(reason)))]);
    // What was cut off on its way has not the checksum that it left with.
    bench.send(8, LONG).expect("accepted");
    let rows = compute_reply::Kind::Rows(pb::Rows {
        id: 2,
        rows: Bytes::from_static(&[0; 5]),
        ..Default::default()
    });
    assert_eq!(bench.calls.on_reply(Some(rows)), Ok(StreamAction::Read));
    let corrupt = CallError::Corrupt(Corruption::Rows);
    assert_eq!(bench.arrived(), [(8, Some(corrupt))]);
}
