use super::*;
use std::sync::Mutex;

use ds4_common::expert::{BatchFields, ExpertBatch, ExpertInput, MoeShape, Route};
use ds4_common::tiles::{Grid, TileRect, TileSet};

const GRID: Grid = Grid {
    experts: 2,
    blocks: 1,
};

/// Notes the layers that it computes; each waits for `gate`. Layer 13 panics.
struct Script {
    seen: Arc<Mutex<Vec<usize>>>,
    gate: Receiver<()>,
}

impl Compute for Script {
    fn compute(
        &mut self,
        batch: &ExpertBatch,
        _: &[TileRect],
        out: &mut Vec<f32>,
    ) -> Result<u64, BatchError> {
        self.gate
            .recv_timeout(Duration::from_secs(10))
            .expect("opened");
        self.seen.lock().expect("seen").push(batch.layer);
        assert_ne!(batch.layer, 13, "the scripted defect");
        out.push(batch.layer as f32);
        Ok(7)
    }
}

struct Bench {
    seen: Arc<Mutex<Vec<usize>>>,
    gate: SyncSender<()>,
    queue: WorkQueue,
    worker: Worker,
    stats: Arc<Stats>,
    outcomes: Receiver<(u64, JobOutcome)>,
    sink: SyncSender<(u64, JobOutcome)>,
}

fn bench(queue: usize) -> Bench {
    let (gate, opened) = sync_channel(64);
    let (sink, outcomes) = sync_channel(64);
    let seen = Arc::default();
    let script = Box::new(Script {
        seen: Arc::clone(&seen),
        gate: opened,
    });
    let stats = Arc::new(Stats::default());
    let (queue, worker) =
        Worker::start(script, Threads::new(2, false), queue, Arc::clone(&stats)).expect("worker");
    Bench {
        seen,
        gate,
        queue,
        worker,
        stats,
        outcomes,
        sink,
    }
}

impl Bench {
    fn job(&self, layer: usize, deadline: Duration) -> (ComputeJob, Arc<AtomicBool>) {
        let cancelled = Arc::new(AtomicBool::new(false));
        let sink = self.sink.clone();
        let shape = MoeShape {
            layers: 16,
            hidden: 4,
            experts_used: 1,
            grid: GRID,
        };
        let fields = BatchFields {
            layer,
            tokens: 1,
            routes: vec![Route {
                expert: 0,
                weight: 1.0,
            }],
            input: ExpertInput::F32(vec![0.0; 4]),
            round: false,
        };
        let job = ComputeJob {
            call: DecodedWork {
                id: layer as u64,
                batch: ExpertBatch::new(shape, fields).expect("a legal batch"),
                rects: TileSet::new(GRID, vec![GRID.whole()]).expect("set"),
                deadline,
                checksum: 0,
            }
            .sealed(),
            received: Instant::now(),
            cancelled: Arc::clone(&cancelled),
            done: Box::new(move |outcome| sink.send((layer as u64, outcome)).expect("sink")),
        };
        (job, cancelled)
    }

    fn next(&self) -> (u64, JobOutcome) {
        self.outcomes
            .recv_timeout(Duration::from_secs(10))
            .expect("an outcome")
    }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn cancelled_and_expired_jobs_are_dropped_before_they_compute() {
    let bench = bench(8);
    let (first, _) = bench.job(1, LONG);
    let (second, cancelled) = bench.job(2, LONG);
    let (third, _) = bench.job(3, Duration::ZERO);
    let (fourth, _) = bench.job(4, LONG);
    for job in [first, second, third, fourth] {
        bench.queue.submit(job).expect("room");
    }
    cancelled.store(true, Ordering::Release);
    bench.gate.send(()).expect("gate");
    bench.gate.send(()).expect("gate");
    assert!(matches!(bench.next(), (1, JobOutcome::Rows { .. })));
    assert!(matches!(bench.next(), (2, JobOutcome::Cancelled)));
    assert!(matches!(bench.next(), (3, JobOutcome::Expired)));
    assert!(matches!(bench.next(), (4, JobOutcome::Rows { .. })));
    assert_eq!(*bench.seen.lock().expect("seen"), [1, 4]);
    let counters = bench.stats.snapshot();
    assert_eq!((counters.calls, counters.dropped), (2, 2));
    assert_eq!(counters.expert_blocks, 14);
}

#[test]
fn a_full_queue_refuses() {
    let bench = bench(1);
    let mut refused = 0;
    for layer in 0..4 {
        refused += usize::from(bench.queue.submit(bench.job(layer, LONG).0).is_err());
    }
    // One may be with the thread already, one waits in the queue.
    assert!((2..=3).contains(&refused), "{refused}");
    for _ in refused..4 {
        bench.gate.send(()).expect("gate");
        bench.next();
    }
}

#[test]
fn a_panic_costs_one_job() {
    let bench = bench(8);
    for layer in [13, 5] {
        bench.queue.submit(bench.job(layer, LONG).0).expect("room");
        bench.gate.send(()).expect("gate");
    }
    assert!(matches!(bench.next(), (13, JobOutcome::Broken)));
    assert!(matches!(bench.next(), (5, JobOutcome::Rows { .. })));
}

/// Counts how often it was told that it is idle.
struct Lazy(Arc<Mutex<usize>>);

impl Compute for Lazy {
    fn compute(
        &mut self,
        _: &ExpertBatch,
        _: &[TileRect],
        _: &mut Vec<f32>,
    ) -> Result<u64, BatchError> {
        Ok(0)
    }

    fn idle(&mut self) {
        *self.0.lock().expect("count") += 1;
    }
}

#[test]
fn a_pause_is_told_once_and_work_goes_on_after_it() {
    let bench = bench(8);
    let idle = Arc::new(Mutex::new(0));
    let mut lazy = Lazy(Arc::clone(&idle));
    let (jobs, inbox) = sync_channel(8);
    let run = std::thread::spawn(move || {
        run(
            &inbox,
            &mut lazy,
            &Stats::default(),
            Duration::from_millis(20),
        );
    });
    for pause in 1..3 {
        jobs.send(QueueEntry::Job(Box::new(bench.job(pause, LONG).0)))
            .expect("it runs");
        assert!(matches!(bench.next(), (_, JobOutcome::Rows { .. })));
        let begun = Instant::now();
        while *idle.lock().expect("count") < pause {
            assert!(begun.elapsed() < Duration::from_secs(10), "never idle");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(*idle.lock().expect("count"), pause, "once a pause");
    }
    drop(jobs);
    run.join().expect("it ends");
}

#[test]
fn queued_jobs_are_finished_before_the_thread_ends() {
    let bench = bench(8);
    for layer in 0..3 {
        bench.queue.submit(bench.job(layer, LONG).0).expect("room");
    }
    drop(bench.queue);
    assert!(!bench.worker.wait(Duration::from_millis(20)));
    for _ in 0..3 {
        bench.gate.send(()).expect("gate");
    }
    assert!(bench.worker.wait(Duration::from_secs(10)));
    assert_eq!(bench.outcomes.try_iter().count(), 3);
}
