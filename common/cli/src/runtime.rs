//! The async runtime of a process, with the threads that it cannot do without.
//!
//! Where the system allows fewer threads, Tokio panics or leaves tasks in a queue that nobody
//! empties. So the threads are asked for before the runtime is built, and a lack of them is an
//! error; one thread of each kind that was started stays, so that work which finds no thread of its
//! own waits for that one.

use std::future::Future;
use std::io;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Runtime};

/// Threads for blocking work that are started with the runtime and stay.
const BLOCKING_AT_START: usize = 2;

/// The most threads for blocking work; more of it waits. None of it takes long, except what a
/// process does only once or a few times.
const MOST_BLOCKING: usize = 64;

/// Longest wait for a thread that was started to run.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Threads for blocking work stay this long without any: for ever, in practice.
const KEEP: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs `work` on an async runtime of its own. Blocking work that still runs afterwards is left
/// behind, since the process is about to end.
///
/// # Errors
/// Those of `work`, or the system does not allow the threads.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = RunningRuntime(Some(start()?));
    match &runtime.0 {
        Some(runtime) => runtime.block_on(work),
        None => unreachable!("taken when dropped"),
    }
}

/// Does not wait for blocking work when it is dropped, also by a panic.
struct RunningRuntime(Option<Runtime>);

impl Drop for RunningRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn start() -> Result<Runtime> {
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let threads = workers + BLOCKING_AT_START;
    rehearse(threads).with_context(|| {
        format!(
            "cannot start the {threads} threads of the async runtime: raise the limit of processes \
             (`ulimit -u`, or pids.max of the control group)"
        )
    })?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(MOST_BLOCKING)
        .thread_keep_alive(KEEP)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    occupy_blocking_threads(&runtime)?;
    Ok(runtime)
}

/// Has `count` threads at the same time, and ends them.
fn rehearse(count: usize) -> io::Result<()> {
    let mut started = Vec::with_capacity(count);
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = Arc::new(std::sync::Mutex::new(wait));
    let mut outcome = Ok(());
    for _ in 0..count {
        let wait = Arc::clone(&wait);
        let idle = move || {
            // The sender is dropped, which ends every wait.
            let _ = wait.lock().map(|wait| wait.recv());
        };
        match thread::Builder::new()
            .name("ds4-rehearsal".into())
            .spawn(idle)
        {
            Ok(thread) => started.push(thread),
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    drop(go);
    for thread in started {
        // It cannot panic.
        let _ = thread.join();
    }
    outcome
}

/// Has every thread for blocking work started that is to be there from the start.
fn occupy_blocking_threads(runtime: &Runtime) -> Result<()> {
    let all_here = Arc::new(Barrier::new(BLOCKING_AT_START));
    let waits: Vec<_> = (0..BLOCKING_AT_START)
        .map(|_| {
            let all_here = Arc::clone(&all_here);
            runtime.spawn_blocking(move || all_here.wait())
        })
        .collect();
    let all = async {
        for wait in waits {
            // The closure cannot panic, and the runtime lives.
            let _ = wait.await;
        }
    };
    runtime
        .block_on(async { tokio::time::timeout(START_TIMEOUT, all).await })
        .context("the threads for blocking work did not start")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_runs_and_blocking_work_does_not_delay_the_end() {
        let began = std::time::Instant::now();
        let result = block_on(async {
            tokio::task::spawn_blocking(|| thread::sleep(Duration::from_secs(60)));
            let sum = tokio::task::spawn_blocking(|| 2 + 2).await?;
            let task = tokio::spawn(async move { sum * 10 });
            Ok(task.await?)
        });
        assert_eq!(result.expect("no error"), 40);
        assert!(began.elapsed() < Duration::from_secs(50));
        let failed: Result<()> = block_on(async { anyhow::bail!("nothing to do") });
        assert_eq!(failed.expect_err("an error").to_string(), "nothing to do");
    }

    #[test]
    fn threads_are_rehearsed_all_at_the_same_time() {
        rehearse(8).expect("eight threads");
    }
}
