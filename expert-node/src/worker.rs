//! One compute thread with its own rayon pool behind a bounded queue. No async, no sockets.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use ds4_common::expert::BatchError;
use ds4_common::kernels::Kernels;
use ds4_common::measure::{Measurement, Rates};
use ds4_common::threads::Threads;
use ds4_proto::wire::{DecodedWork, rows_checksum};
use tokio::sync::oneshot;

use crate::compute::{Compute, OutOfService};
use crate::stats::Stats;

/// Time without work after which buffers are freed.
const IDLE_AFTER: Duration = Duration::from_secs(10);

/// A call to compute, and where its outcome goes.
pub struct ComputeJob {
    /// The checked work.
    pub call: DecodedWork,
    /// When it arrived; the call's deadline counts from here.
    pub received: Instant,
    /// Set when the coordinator cancels the call or leaves; read right before the computation.
    pub cancelled: Arc<AtomicBool>,
    /// Receives the outcome. Called at most once, by the compute thread; must not block.
    pub done: Box<dyn FnOnce(JobOutcome) + Send>,
}

impl std::fmt::Debug for ComputeJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ComputeJob")
            .field("id", &self.call.id)
            .finish()
    }
}

/// What became of a job.
#[derive(Debug)]
pub enum JobOutcome {
    /// It was computed.
    Rows {
        /// Rows x hidden.
        values: Vec<f32>,
        /// Checksum of the rows as they were computed, see [`rows_checksum`].
        checksum: u64,
        /// From receipt to the start of the computation.
        queued: Duration,
        /// Duration of the computation.
        computed: Duration,
    },
    /// It was cancelled before the computation.
    Cancelled,
    /// Its deadline passed before the computation.
    Expired,
    /// It is not what the coordinator sent.
    Corrupt,
    /// The batch does not fit the weights.
    Refused(BatchError),
    /// The weights are not to be computed with.
    OutOfService(OutOfService),
    /// The computation panicked.
    Broken,
}

/// One turn of a measurement, and where its outcome goes.
#[derive(Debug)]
pub(crate) struct MeasureTurn {
    pub(crate) measurement: Measurement,
    pub(crate) done: oneshot::Sender<TurnOutcome>,
}

/// What became of a turn.
#[derive(Debug)]
pub(crate) struct TurnOutcome {
    pub(crate) measurement: Measurement,
    pub(crate) kernels: Kernels,
    /// `Some` once the measurement is complete.
    pub(crate) rates: Option<Rates>,
}

/// What waits in the queue.
#[derive(Debug)]
enum QueueEntry {
    Job(Box<ComputeJob>),
    Turn(Box<MeasureTurn>),
}

/// No room for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full")]
pub struct QueueFull;

/// The way into the queue. The worker ends when every clone is gone.
#[derive(Clone, Debug)]
pub struct WorkQueue {
    entries: SyncSender<QueueEntry>,
}

impl WorkQueue {
    /// Queues a job behind those that came earlier, from whichever coordinator.
    ///
    /// # Errors
    /// The queue is full, or the worker has ended; the job is dropped without an outcome.
    pub fn submit(&self, job: ComputeJob) -> Result<(), QueueFull> {
        self.entries
            .try_send(QueueEntry::Job(Box::new(job)))
            .map_err(|_| QueueFull)
    }

    /// Queues a turn behind what came earlier.
    ///
    /// # Errors
    /// The queue is full; returns the turn, to be submitted again.
    pub(crate) fn submit_turn(&self, turn: Box<MeasureTurn>) -> Result<(), Box<MeasureTurn>> {
        match self.entries.try_send(QueueEntry::Turn(turn)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(QueueEntry::Turn(turn))) => Err(turn),
            // Without a worker the sender of the outcome is dropped, which the waiter notices.
            Err(_) => Ok(()),
        }
    }
}

/// The compute thread.
#[derive(Debug)]
pub struct Worker {
    ended: Receiver<()>,
}

impl Worker {
    /// Starts a compute thread whose pool is `threads`, itself included.
    ///
    /// # Errors
    /// The threads could not be made.
    pub fn start(
        mut compute: Box<dyn Compute>,
        threads: Threads,
        queue: usize,
        stats: Arc<Stats>,
    ) -> std::io::Result<(WorkQueue, Worker)> {
        let (entries, inbox) = sync_channel(queue.max(1));
        let (started, start) = sync_channel(1);
        let (ending, ended) = sync_channel(1);
        std::thread::Builder::new()
            .name("ds4-compute".to_owned())
            .spawn(move || {
                // The compute thread is part of its pool, so that a call needs no hand-over.
                threads.place(0);
                let pool = threads
                    .pool()
                    .thread_name(|i| format!("ds4-compute-{i}"))
                    .use_current_thread()
                    .build();
                let usable = pool.as_ref().map(|_| ()).map_err(ToString::to_string);
                let go = usable.is_ok();
                // The starter waits for this message.
                let _ = started.send(usable);
                if go {
                    run(&inbox, compute.as_mut(), &stats, IDLE_AFTER);
                }
                drop(pool);
                drop(ending);
            })?;
        match start.recv() {
            Ok(Ok(())) => Ok((WorkQueue { entries }, Worker { ended })),
            Ok(Err(reason)) => Err(std::io::Error::other(reason)),
            Err(_) => Err(std::io::Error::other(
                "the compute thread ended while starting",
            )),
        }
    }

    /// Waits until the thread has ended, which it does once all queues are gone and its jobs are
    /// done. Returns whether it has.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        matches!(
            self.ended.recv_timeout(timeout),
            Err(RecvTimeoutError::Disconnected)
        )
    }
}

fn run(
    inbox: &Receiver<QueueEntry>,
    compute: &mut dyn Compute,
    stats: &Stats,
    idle_after: Duration,
) {
    while let Some(entry) = next(inbox, compute, idle_after) {
        match entry {
            QueueEntry::Job(job) => {
                let outcome = work(&job, compute, stats);
                (job.done)(outcome);
            }
            QueueEntry::Turn(turn) => take_turn(*turn, compute),
        }
    }
}

/// What waits longest, or `None` when all queues are gone.
fn next(
    inbox: &Receiver<QueueEntry>,
    compute: &mut dyn Compute,
    idle_after: Duration,
) -> Option<QueueEntry> {
    match inbox.recv_timeout(idle_after) {
        Ok(entry) => Some(entry),
        Err(RecvTimeoutError::Timeout) => {
            compute.idle();
            inbox.recv().ok()
        }
        Err(RecvTimeoutError::Disconnected) => None,
    }
}

fn take_turn(turn: MeasureTurn, compute: &dyn Compute) {
    let MeasureTurn {
        mut measurement,
        done,
    } = turn;
    // The request has ended.
    if done.is_closed() {
        return;
    }
    let kernels = compute.kernels();
    let rates = measurement.turn(kernels, &compute.weights());
    let outcome = TurnOutcome {
        measurement,
        kernels,
        rates,
    };
    // The request may have ended meanwhile.
    let _ = done.send(outcome);
}

fn work(job: &ComputeJob, compute: &mut dyn Compute, stats: &Stats) -> JobOutcome {
    let queued = job.received.elapsed();
    if job.cancelled.load(Ordering::Acquire) {
        stats.dropped();
        return JobOutcome::Cancelled;
    }
    if queued >= job.call.deadline {
        stats.dropped();
        return JobOutcome::Expired;
    }
    if !job.call.is_intact() {
        stats.refused();
        return JobOutcome::Corrupt;
    }
    let DecodedWork { batch, rects, .. } = &job.call;
    let start = Instant::now();
    let mut values = Vec::new();
    // A panic is a defect of one call: the node goes on serving the others. `values` is dropped
    // then, so that no partial result is seen.
    let result = catch_unwind(AssertUnwindSafe(|| -> Result<_, OutOfService> {
        compute.admit(batch.layer)?;
        let done = compute.compute(batch, rects.rects(), &mut values);
        compute.release()?;
        Ok(done)
    }));
    let computed = start.elapsed();
    match result {
        Ok(Ok(Ok(expert_block_ops))) => {
            stats.computed(expert_block_ops, computed);
            JobOutcome::Rows {
                checksum: rows_checksum(&values, job.call.checksum),
                values,
                queued,
                computed,
            }
        }
        Ok(Ok(Err(error))) => {
            stats.refused();
            JobOutcome::Refused(error)
        }
        Ok(Err(fault)) => {
            stats.refused();
            JobOutcome::OutOfService(fault)
        }
        Err(_) => JobOutcome::Broken,
    }
}

#[cfg(test)]
mod tests;
