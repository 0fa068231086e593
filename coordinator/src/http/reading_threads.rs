//! The threads that read requests: JSON, prompt, tokens.
//!
//! Reading computes, so the async threads, which answer `/health` and write streams, must not do
//! it; and whatever clients send must not take the cores from the requests that run. So there are
//! two threads, one for small bodies and one for large ones, that run at a lower priority than the
//! rest of the process. A small request never waits behind a large one.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::{Semaphore, oneshot};

use super::error::ApiError;

/// The largest body that counts as small.
const SMALL: usize = 64 << 10;
/// The longest wait for a turn.
const WAIT: Duration = Duration::from_secs(30);
/// The priorities of the threads: beside a thread of the engine on the same core, about a tenth of
/// its time for small bodies, and a seventieth for large ones.
const NICE_SMALL: i32 = 10;
const NICE_LARGE: i32 = 19;

/// The threads; they end when this is dropped.
#[derive(Debug)]
pub(super) struct ReadingThreads {
    small: Lane,
    large: Lane,
}

type Job = Box<dyn FnOnce() + Send>;

/// One thread, and who may give it work: one at a time, in the order of their coming.
#[derive(Debug)]
struct Lane {
    turn: Arc<Semaphore>,
    jobs: SyncSender<Job>,
}

/// Whether anybody waits for the result of a job; a long one asks now and then.
#[derive(Clone, Debug)]
pub(super) struct Wanted(Arc<AtomicBool>);

impl Wanted {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Ends the wish for a result when its client leaves.
struct EndWish(Wanted);

impl Drop for EndWish {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Relaxed);
    }
}

impl ReadingThreads {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system gave none.
    pub(super) fn start() -> io::Result<Self> {
        Ok(ReadingThreads {
            small: Lane::start("ds4-read-small", NICE_SMALL)?,
            large: Lane::start("ds4-read-large", NICE_LARGE)?,
        })
    }

    /// Runs `work` for a body of `bytes` when it is its turn. Dropping the future ends the wait, and
    /// the work at its next question whether it is wanted.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&Wanted) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let lane = if bytes <= SMALL {
            &self.small
        } else {
            &self.large
        };
        let turn = Arc::clone(&lane.turn).acquire_owned();
        let Ok(Ok(turn)) = tokio::time::timeout(WAIT, turn).await else {
            return Err(busy());
        };
        let wanted = Wanted(Arc::new(AtomicBool::new(true)));
        let _end = EndWish(wanted.clone());
        let (send, receive) = oneshot::channel();
        let job = move || {
            if wanted.get() {
                let result = work(&wanted);
                // Its client may be gone.
                let _ = send.send(result);
            }
            drop(turn);
        };
        // The turn says that the thread is idle, or about to be.
        if lane.jobs.try_send(Box::new(job)).is_err() {
            return Err(failed());
        }
        receive.await.unwrap_or_else(|_| Err(failed()))
    }
}

impl Lane {
    fn start(name: &str, nice: i32) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(1);
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || work_off(&queue, nice))?;
        Ok(Lane {
            turn: Arc::new(Semaphore::new(1)),
            jobs,
        })
    }
}

fn work_off(queue: &Receiver<Job>, nice: i32) {
    // Without a process id, the kernel takes the calling thread. Where it refuses, requests are read
    // all the same.
    if let Err(error) = rustix::process::setpriority_process(None, nice) {
        tracing::debug!(%error, "the priority of a thread that reads requests was not lowered");
    }
    while let Ok(job) = queue.recv() {
        // A panic is reported on stderr; the request it belongs to learns of it by its channel.
        let _ = catch_unwind(AssertUnwindSafe(job));
    }
}

fn busy() -> ApiError {
    ApiError {
        retry_after_s: Some(WAIT.as_secs()),
        ..ApiError::status(
            StatusCode::SERVICE_UNAVAILABLE,
            "server_busy",
            "too many requests are being read",
        )
    }
}

fn failed() -> ApiError {
    ApiError::status(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal_error",
        "reading the request failed",
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn a_small_body_does_not_wait_for_a_large_one() {
        let threads = Arc::new(ReadingThreads::start().unwrap());
        let held = Arc::new(Barrier::new(2));
        let large = {
            let (threads, held) = (Arc::clone(&threads), Arc::clone(&held));
            let work = move |_: &Wanted| {
                held.wait();
                Ok("large")
            };
            tokio::spawn(async move { threads.run(SMALL + 1, work).await })
        };
        assert_eq!(threads.run(SMALL, |_| Ok("small")).await, Ok("small"));
        assert!(!large.is_finished());
        held.wait();
        assert_eq!(large.await.unwrap(), Ok("large"));
    }

    #[tokio::test]
    async fn a_panic_fails_its_own_request_alone() {
        let threads = ReadingThreads::start().unwrap();
        let panics = |_: &Wanted| -> Result<(), ApiError> { panic!("the test wants this panic") };
        let error = threads.run(1, panics).await.unwrap_err();
        assert_eq!(error.code, Some("internal_error"));
        assert_eq!(threads.run(1, |_| Ok(7)).await, Ok(7));
    }

    #[tokio::test]
    async fn a_client_that_leaves_ends_its_work() {
        let threads = Arc::new(ReadingThreads::start().unwrap());
        let (started, has_started) = oneshot::channel();
        let (ended, has_ended) = oneshot::channel();
        let task = {
            let threads = Arc::clone(&threads);
            let work = move |wanted: &Wanted| {
                started.send(()).unwrap();
                while wanted.get() {
                    std::thread::yield_now();
                }
                ended.send(()).unwrap();
                Ok(())
            };
            tokio::spawn(async move { threads.run(1, work).await })
        };
        has_started.await.unwrap();
        task.abort();
        has_ended.await.unwrap();
        assert_eq!(threads.run(1, |_| Ok(7)).await, Ok(7));
    }
}
