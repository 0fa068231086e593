//! Admission: a bounded queue between the callers and the runner.
//!
//! A full queue refuses at once with an estimate of when to come back, because a caller that is
//! told so can go elsewhere and one that hangs cannot.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::request::{AdmissionError, Event, GenerateRequest, Progress};
use crate::sampling::Sampler;

/// A request with the ends of its channels.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) request: GenerateRequest,
    pub(super) sampler: Sampler,
    /// `max_tokens` cut to what the context leaves.
    pub(super) max_tokens: usize,
    /// Bytes that its caches may come to take.
    pub(super) kv_bytes: u64,
    /// Has a place for every event that the request can produce, so that sending never waits.
    pub(super) events: mpsc::Sender<Event>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) submitted: Instant,
}

impl Job {
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    /// Nothing new; what is here is finished.
    Draining,
    /// Nothing new, and what is here is given up.
    Aborting,
    /// The runner is gone.
    Stopped,
}

#[derive(Debug)]
struct State {
    waiting: VecDeque<Job>,
    /// Cancel flags of all requests that are waiting or running.
    live: HashMap<u64, Arc<AtomicBool>>,
    gate: Gate,
    next_id: u64,
    /// Running mean of how long a request occupies a place.
    mean_service: Duration,
}

/// The queue, shared by callers and runner.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    capacity: usize,
    places: usize,
}

impl Queue {
    /// A queue of at most `capacity` waiting requests before `places` running ones.
    pub(super) fn new(capacity: usize, places: usize) -> Self {
        Queue {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                live: HashMap::new(),
                gate: Gate::Open,
                next_id: 0,
                mean_service: Duration::from_secs(1),
            }),
            changed: Condvar::new(),
            capacity,
            places: places.max(1),
        }
    }

    // Nothing here panics while the lock is held, so a poisoned lock still guards a sound state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether [`Queue::push`] would take a job now.
    pub(super) fn check_room(&self) -> Result<(), AdmissionError> {
        self.room(&mut self.lock())
    }

    fn room(&self, state: &mut State) -> Result<(), AdmissionError> {
        match state.gate {
            Gate::Open => {}
            Gate::Draining | Gate::Aborting => return Err(AdmissionError::ShuttingDown),
            Gate::Stopped => return Err(AdmissionError::Stopped),
        }
        // Those whose callers left hold no place: the runner has just not seen it yet.
        state.drop_cancelled();
        let waiting = state.waiting.len();
        let idle = self.places.saturating_sub(state.live.len() - waiting);
        if waiting < self.capacity + idle {
            return Ok(());
        }
        let retry_after_s = self.retry_after(state);
        Err(AdmissionError::QueueFull {
            waiting,
            retry_after_s,
        })
    }

    /// Puts a job made by `job` (which gets its id) at the end.
    pub(super) fn push(&self, job: impl FnOnce(u64) -> Job) -> Result<(), AdmissionError> {
        let mut state = self.lock();
        self.room(&mut state)?;
        let id = state.next_id;
        state.next_id += 1;
        let job = job(id);
        state.live.insert(id, Arc::clone(&job.cancelled));
        state.waiting.push_back(job);
        self.changed.notify_all();
        Ok(())
    }

    fn retry_after(&self, state: &State) -> u64 {
        let rounds = state.waiting.len() as f64 / self.places as f64;
        (state.mean_service.as_secs_f64() * rounds)
            .ceil()
            .clamp(1.0, 60.0) as u64
    }

    /// Takes up to `places` waiting jobs whose caches fit into `kv_bytes` together. One that does
    /// not fit keeps its turn: those behind it wait too. With `wait`, sleeps until there is one or
    /// the gate closes.
    pub(super) fn take(&self, places: usize, kv_bytes: u64, wait: bool) -> Vec<Job> {
        let mut state = self.lock();
        state.drop_cancelled();
        while wait && state.waiting.is_empty() && state.gate == Gate::Open {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.drop_cancelled();
        }
        let mut left = kv_bytes;
        let fits = |job: &&Job| {
            let rest = left.checked_sub(job.kv_bytes);
            left = rest.unwrap_or(left);
            rest.is_some()
        };
        let n = state.waiting.iter().take(places).take_while(fits).count();
        state.waiting.drain(..n).collect()
    }

    /// Removes the jobs that have waited longer than `limit`.
    pub(super) fn take_expired(&self, limit: Duration) -> Vec<Job> {
        let mut state = self.lock();
        let expired = state
            .waiting
            .iter()
            .take_while(|job| job.submitted.elapsed() > limit)
            .count();
        let jobs: Vec<Job> = state.waiting.drain(..expired).collect();
        for job in &jobs {
            state.live.remove(&job.id);
        }
        jobs
    }

    /// A job taken earlier has ended after `service` in its place.
    pub(super) fn finished(&self, id: u64, service: Duration) {
        let mut state = self.lock();
        state.live.remove(&id);
        state.mean_service = (state.mean_service * 7 + service) / 8;
        self.changed.notify_all();
    }

    pub(super) fn gate(&self) -> Gate {
        self.lock().gate
    }

    /// Closes the gate further; it never opens again.
    pub(super) fn close(&self, gate: Gate) {
        let mut state = self.lock();
        if state.gate == Gate::Stopped || (state.gate == Gate::Aborting && gate == Gate::Draining) {
            return;
        }
        state.gate = gate;
        if gate != Gate::Draining {
            for flag in state.live.values() {
                flag.store(true, Ordering::Relaxed);
            }
        }
        self.changed.notify_all();
    }

    /// Empties the queue of a runner that is gone; dropping the jobs tells their callers.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        state.waiting.clear();
        state.live.clear();
    }

    /// (waiting, running)
    pub(super) fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        (state.waiting.len(), state.live.len() - state.waiting.len())
    }
}

impl State {
    fn drop_cancelled(&mut self) {
        // While aborting every flag is set, and the runner still owes each job its last event.
        if self.gate == Gate::Aborting {
            return;
        }
        let live = &mut self.live;
        self.waiting.retain(|job| {
            let keep = !job.is_cancelled();
            if !keep {
                live.remove(&job.id);
            }
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::SamplingParams;
    use crate::scheduler::request::Reading;

    fn job(id: u64) -> Job {
        let (events, _) = mpsc::channel(1);
        let (progress, _) = watch::channel(Progress::default());
        let request = GenerateRequest {
            prompt: vec![1, 2],
            max_tokens: None,
            sampling: SamplingParams::default(),
            stop: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            reading: Reading::Plain,
        };
        Job {
            id,
            sampler: Sampler::new(request.sampling).unwrap(),
            request,
            max_tokens: 1,
            kv_bytes: 10,
            events,
            progress,
            cancelled: Arc::default(),
            submitted: Instant::now(),
        }
    }

    #[test]
    fn idle_places_do_not_count_as_queue() {
        let queue = Queue::new(1, 2);
        for _ in 0..3 {
            queue.push(job).unwrap();
        }
        assert!(matches!(
            queue.push(job),
            Err(AdmissionError::QueueFull { waiting: 3, .. })
        ));
        assert_eq!(queue.take(2, 1000, false).len(), 2);
        assert!(matches!(
            queue.push(job),
            Err(AdmissionError::QueueFull { waiting: 1, .. })
        ));
        queue.finished(0, Duration::from_secs(1));
        queue.push(job).unwrap();
    }

    #[test]
    fn a_caller_that_left_frees_its_place_at_once() {
        let queue = Queue::new(0, 1);
        let mut flag = None;
        queue
            .push(|id| {
                let job = job(id);
                flag = Some(Arc::clone(&job.cancelled));
                job
            })
            .unwrap();
        assert!(queue.push(job).is_err());
        flag.unwrap().store(true, Ordering::Relaxed);
        queue.push(job).unwrap();
        assert_eq!(queue.counts(), (1, 0));
    }

    #[test]
    fn jobs_leave_in_order_and_without_those_whose_callers_left() {
        let queue = Queue::new(8, 2);
        let mut flags = Vec::new();
        for _ in 0..5 {
            queue
                .push(|id| {
                    let job = job(id);
                    flags.push(Arc::clone(&job.cancelled));
                    job
                })
                .unwrap();
        }
        flags[0].store(true, Ordering::Relaxed);
        flags[3].store(true, Ordering::Relaxed);
        let ids = |jobs: Vec<Job>| jobs.iter().map(|job| job.id).collect::<Vec<_>>();
        // No place is free, but those who left are forgotten all the same.
        assert!(queue.take(0, 1000, false).is_empty());
        assert_eq!(queue.counts(), (3, 0));
        assert_eq!(ids(queue.take(2, 1000, true)), [1, 2]);
        assert_eq!(ids(queue.take(2, 1000, true)), [4]);
        assert_eq!(queue.counts(), (0, 3));
    }

    #[test]
    fn jobs_wait_for_memory_in_their_turn() {
        let queue = Queue::new(8, 8);
        for bytes in [10, 30, 10] {
            let job = |id| Job {
                kv_bytes: bytes,
                ..job(id)
            };
            queue.push(job).unwrap();
        }
        let ids = |jobs: Vec<Job>| jobs.iter().map(|job| job.id).collect::<Vec<_>>();
        assert_eq!(ids(queue.take(8, 39, true)), [0]);
        // The last one would fit, but the one before it would never get its turn.
        assert!(queue.take(8, 29, false).is_empty());
        assert_eq!(ids(queue.take(8, 40, false)), [1, 2]);
    }

    #[test]
    fn an_abort_reaches_everybody_and_still_hands_every_job_over() {
        let queue = Queue::new(8, 1);
        for _ in 0..3 {
            queue.push(job).unwrap();
        }
        let running = queue.take(1, 1000, false);
        queue.close(Gate::Aborting);
        assert!(running[0].is_cancelled());
        let waiting = queue.take(5, 1000, false);
        assert_eq!(waiting.len(), 2);
        assert!(waiting.iter().all(Job::is_cancelled));
        queue.close(Gate::Draining);
        assert_eq!(queue.gate(), Gate::Aborting);
    }

    #[test]
    fn retry_after_grows_with_the_queue_and_the_length_of_requests() {
        let queue = Queue::new(10, 1);
        for _ in 0..40 {
            queue.finished(99, Duration::from_secs(4));
        }
        for _ in 0..11 {
            queue.push(job).unwrap();
        }
        match queue.push(job) {
            Err(AdmissionError::QueueFull { retry_after_s, .. }) => {
                assert!((40..=60).contains(&retry_after_s), "{retry_after_s}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_closed_gate_wakes_the_runner_and_refuses_callers() {
        let queue = Arc::new(Queue::new(1, 1));
        let waiter = {
            let queue = Arc::clone(&queue);
            std::thread::spawn(move || queue.take(1, 1000, true).len())
        };
        queue.close(Gate::Draining);
        assert_eq!(waiter.join().unwrap(), 0);
        assert_eq!(queue.push(job), Err(AdmissionError::ShuttingDown));
        queue.close(Gate::Stopped);
        queue.close(Gate::Draining);
        assert_eq!(queue.push(job), Err(AdmissionError::Stopped));
    }

    #[test]
    fn those_who_wait_too_long_are_handed_back() {
        let queue = Queue::new(4, 1);
        queue.push(job).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        assert!(queue.take_expired(Duration::from_secs(60)).is_empty());
        assert_eq!(queue.take_expired(Duration::from_millis(1)).len(), 1);
        assert_eq!(queue.counts(), (0, 0));
    }
}
