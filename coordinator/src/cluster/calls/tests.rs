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
    bench.submit(1, LONG);
    assert_eq!(written(&mut wire), [2]);
    assert_eq!(bench.calls.fault(), None);
    assert_eq!(bench.failure(1, pb::FailureKind::Draining), Ok(Next::Read));
    assert_eq!(bench.calls.fault().as_deref(), Some(STOPPING));
    bench.calls.pump();
    assert!(written(&mut wire).is_empty());
    assert_eq!(
        bench.rows(2),
        Ok(Next::Leave),
        "the node owes nothing any more"
    );
    let (outbound, mut wire) = mpsc::channel(64);
    bench.calls.disconnected("stopped");
    bench.calls.connected(outbound, 8);
    assert_eq!(bench.calls.fault(), None);
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
