//! Admission: a bounded queue between the callers and the runner.
//!
//! A full queue refuses at once with an estimate of when to retry, because a refused caller can go
//! elsewhere and one that hangs cannot.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::request::{AdmissionError, GenerateRequest, GenerationEvent, PromptProgress};
use crate::sampling::Sampler;

/// An admitted request with its ends of the channels.
#[derive(Debug)]
pub(super) struct QueuedRequest {
    pub(super) id: u64,
    pub(super) request: GenerateRequest,
    pub(super) sampler: Sampler,
    /// Most tokens of the answer, at most what the context leaves.
    pub(super) max_tokens: usize,
    /// Bytes of its caches at their longest.
    pub(super) kv_bytes: u64,
    /// Has capacity for every event that the request can produce, so that sending never waits.
    pub(super) events: mpsc::Sender<GenerationEvent>,
    pub(super) progress: watch::Sender<PromptProgress>,
    pub(super) cancelled: Arc<AtomicBool>,
    /// Start of the time in the queue.
    pub(super) submitted: Instant,
}

impl QueuedRequest {
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// Whether requests are admitted, and what becomes of those that were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueueGate {
    /// Requests are admitted.
    Open,
    /// No request is admitted; those admitted before are finished.
    Draining,
    /// No request is admitted; those admitted before are cancelled.
    Aborting,
    /// The runner has ended.
    Stopped,
}

#[derive(Debug)]
struct QueueState {
    waiting: VecDeque<QueuedRequest>,
    /// Cancel flags of all requests that are waiting or running.
    live: HashMap<u64, Arc<AtomicBool>>,
    gate: QueueGate,
    /// Whether the model can run steps at present, as far as is known.
    experts_available: bool,
    next_id: u64,
    /// Running mean of the time from leaving the queue to the end of a request.
    mean_service: Duration,
}

/// The queue, shared by callers and runner.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
    capacity: usize,
    max_running: usize,
}

impl Queue {
    /// A queue of at most `capacity` requests that wait while `max_running` others run.
    pub(super) fn new(capacity: usize, max_running: usize) -> Self {
        Queue {
            state: Mutex::new(QueueState {
                waiting: VecDeque::new(),
                live: HashMap::new(),
                gate: QueueGate::Open,
                experts_available: true,
                next_id: 0,
                mean_service: Duration::from_secs(1),
            }),
            changed: Condvar::new(),
            capacity,
            max_running: max_running.max(1),
        }
    }

    // No method panics while it holds the lock, so a poisoned lock still guards a sound state.
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether [`Queue::push`] would admit a request at this moment.
    pub(super) fn check_room(&self) -> Result<(), AdmissionError> {
        self.room(&mut self.lock())
    }

    fn room(&self, state: &mut QueueState) -> Result<(), AdmissionError> {
        match state.gate {
            QueueGate::Open => {}
            QueueGate::Draining | QueueGate::Aborting => return Err(AdmissionError::ShuttingDown),
            QueueGate::Stopped => return Err(AdmissionError::Stopped),
        }
        if !state.experts_available {
            return Err(AdmissionError::ExpertsUnavailable);
        }
        // Requests whose callers left do not count, although the runner has not dropped them yet.
        state.drop_cancelled();
        let waiting = state.waiting.len();
        let idle = self.max_running.saturating_sub(state.live.len() - waiting);
        if waiting < self.capacity + idle {
            return Ok(());
        }
        let retry_after_s = self.retry_after(state);
        Err(AdmissionError::QueueFull {
            waiting,
            retry_after_s,
        })
    }

    /// Appends the request that `with_id` builds around its id.
    pub(super) fn push(
        &self,
        with_id: impl FnOnce(u64) -> QueuedRequest,
    ) -> Result<(), AdmissionError> {
        let mut state = self.lock();
        self.room(&mut state)?;
        let id = state.next_id;
        state.next_id += 1;
        let queued = with_id(id);
        state.live.insert(id, Arc::clone(&queued.cancelled));
        state.waiting.push_back(queued);
        self.changed.notify_all();
        Ok(())
    }

    fn retry_after(&self, state: &QueueState) -> u64 {
        let rounds = state.waiting.len() as f64 / self.max_running as f64;
        (state.mean_service.as_secs_f64() * rounds)
            .ceil()
            .clamp(1.0, 60.0) as u64
    }

    /// Takes up to `count` waiting requests whose caches fit into `kv_bytes` together. One that
    /// does not fit keeps its turn: those behind it wait too. With `wait`, sleeps until a request
    /// waits or the gate closes.
    pub(super) fn take(&self, count: usize, kv_bytes: u64, wait: bool) -> Vec<QueuedRequest> {
        let mut state = self.lock();
        state.drop_cancelled();
        while wait && state.waiting.is_empty() && state.gate == QueueGate::Open {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.drop_cancelled();
        }
        let mut left = kv_bytes;
        let fits = |queued: &&QueuedRequest| {
            let rest = left.checked_sub(queued.kv_bytes);
            left = rest.unwrap_or(left);
            rest.is_some()
        };
        let n = state.waiting.iter().take(count).take_while(fits).count();
        state.waiting.drain(..n).collect()
    }

    /// Removes the requests that have waited longer than `limit`.
    pub(super) fn take_expired(&self, limit: Duration) -> Vec<QueuedRequest> {
        let mut state = self.lock();
        let expired = state
            .waiting
            .iter()
            .take_while(|queued| queued.submitted.elapsed() > limit)
            .count();
        let requests: Vec<QueuedRequest> = state.waiting.drain(..expired).collect();
        for queued in &requests {
            state.live.remove(&queued.id);
        }
        requests
    }

    /// Notes whether the experts can be computed. While they cannot, no request is admitted; returns
    /// those that wait, whose turn would be in vain.
    pub(super) fn set_experts_available(&self, available: bool) -> Vec<QueuedRequest> {
        let mut state = self.lock();
        state.experts_available = available;
        // Of a queue that is closed, the runner takes care.
        if available || matches!(state.gate, QueueGate::Aborting | QueueGate::Stopped) {
            return Vec::new();
        }
        let requests: Vec<QueuedRequest> = state.waiting.drain(..).collect();
        for queued in &requests {
            state.live.remove(&queued.id);
        }
        self.changed.notify_all();
        requests
    }

    /// Notes that a request taken earlier has ended, `service` after it left the queue.
    pub(super) fn finished(&self, id: u64, service: Duration) {
        let mut state = self.lock();
        state.live.remove(&id);
        state.mean_service = (state.mean_service * 7 + service) / 8;
        self.changed.notify_all();
    }

    pub(super) fn gate(&self) -> QueueGate {
        self.lock().gate
    }

    /// Closes the gate further; it never reopens.
    pub(super) fn close(&self, gate: QueueGate) {
        let mut state = self.lock();
        if state.gate == QueueGate::Stopped
            || (state.gate == QueueGate::Aborting && gate == QueueGate::Draining)
        {
            return;
        }
        state.gate = gate;
        if gate != QueueGate::Draining {
            for flag in state.live.values() {
                flag.store(true, Ordering::Relaxed);
            }
        }
        self.changed.notify_all();
    }

    /// Empties the queue after the runner has ended; dropping the requests informs their callers.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        state.waiting.clear();
        state.live.clear();
    }

    /// Numbers of waiting and of running requests.
    pub(super) fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        (state.waiting.len(), state.live.len() - state.waiting.len())
    }
}

impl QueueState {
    fn drop_cancelled(&mut self) {
        // While aborting every flag is set, and the runner still owes each request its last event.
        if self.gate == QueueGate::Aborting {
            return;
        }
        let live = &mut self.live;
        self.waiting.retain(|queued| {
            let keep = !queued.is_cancelled();
            if !keep {
                live.remove(&queued.id);
            }
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::request::AnswerFormat;

    fn queued(id: u64) -> QueuedRequest {
        let (events, _) = mpsc::channel(1);
        let (progress, _) = watch::channel(PromptProgress::default());
        let request = GenerateRequest::new(vec![1, 2], AnswerFormat::Text);
        QueuedRequest {
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
    fn requests_that_can_run_at_once_do_not_count_as_waiting() {
        let queue = Queue::new(1, 2);
        for _ in 0..3 {
            queue.push(queued).unwrap();
        }
        assert!(matches!(
            queue.push(queued),
            Err(AdmissionError::QueueFull { waiting: 3, .. })
        ));
        assert_eq!(queue.take(2, 1000, false).len(), 2);
        assert!(matches!(
            queue.push(queued),
            Err(AdmissionError::QueueFull { waiting: 1, .. })
        ));
        queue.finished(0, Duration::from_secs(1));
        queue.push(queued).unwrap();
    }

    #[test]
    fn a_caller_that_left_makes_room_at_once() {
        let queue = Queue::new(0, 1);
        let mut flag = None;
        queue
            .push(|id| {
                let queued = queued(id);
                flag = Some(Arc::clone(&queued.cancelled));
                queued
            })
            .unwrap();
        assert!(queue.push(queued).is_err());
        flag.unwrap().store(true, Ordering::Relaxed);
        queue.push(queued).unwrap();
        assert_eq!(queue.counts(), (1, 0));
    }

    #[test]
    fn requests_leave_in_order_and_without_those_whose_callers_left() {
        let queue = Queue::new(8, 2);
        let mut flags = Vec::new();
        for _ in 0..5 {
            queue
                .push(|id| {
                    let queued = queued(id);
                    flags.push(Arc::clone(&queued.cancelled));
                    queued
                })
                .unwrap();
        }
        flags[0].store(true, Ordering::Relaxed);
        flags[3].store(true, Ordering::Relaxed);
        let ids = |requests: Vec<QueuedRequest>| {
            requests.iter().map(|queued| queued.id).collect::<Vec<_>>()
        };
        // None can run, but requests whose callers left are dropped all the same.
        assert!(queue.take(0, 1000, false).is_empty());
        assert_eq!(queue.counts(), (3, 0));
        assert_eq!(ids(queue.take(2, 1000, true)), [1, 2]);
        assert_eq!(ids(queue.take(2, 1000, true)), [4]);
        assert_eq!(queue.counts(), (0, 3));
    }

    #[test]
    fn requests_wait_for_memory_in_their_turn() {
        let queue = Queue::new(8, 8);
        for bytes in [10, 30, 10] {
            let queued = |id| QueuedRequest {
                kv_bytes: bytes,
                ..queued(id)
            };
            queue.push(queued).unwrap();
        }
        let ids = |requests: Vec<QueuedRequest>| {
            requests.iter().map(|queued| queued.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(queue.take(8, 39, true)), [0]);
        // The last one would fit, but then the one before it might never get its turn.
        assert!(queue.take(8, 29, false).is_empty());
        assert_eq!(ids(queue.take(8, 40, false)), [1, 2]);
    }

    #[test]
    fn an_abort_cancels_all_requests_and_still_hands_them_over() {
        let queue = Queue::new(8, 1);
        for _ in 0..3 {
            queue.push(queued).unwrap();
        }
        let running = queue.take(1, 1000, false);
        queue.close(QueueGate::Aborting);
        assert!(running[0].is_cancelled());
        let waiting = queue.take(5, 1000, false);
        assert_eq!(waiting.len(), 2);
        assert!(waiting.iter().all(QueuedRequest::is_cancelled));
        queue.close(QueueGate::Draining);
        assert_eq!(queue.gate(), QueueGate::Aborting);
    }

    #[test]
    fn retry_after_grows_with_the_queue_and_the_length_of_requests() {
        let queue = Queue::new(10, 1);
        for _ in 0..40 {
            queue.finished(99, Duration::from_secs(4));
        }
        for _ in 0..11 {
            queue.push(queued).unwrap();
        }
        match queue.push(queued) {
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
        queue.close(QueueGate::Draining);
        assert_eq!(waiter.join().unwrap(), 0);
        assert_eq!(queue.push(queued), Err(AdmissionError::ShuttingDown));
        queue.close(QueueGate::Stopped);
        queue.close(QueueGate::Draining);
        assert_eq!(queue.push(queued), Err(AdmissionError::Stopped));
    }

    #[test]
    fn without_experts_nothing_is_admitted_and_nothing_waits() {
        let queue = Queue::new(4, 1);
        queue.push(queued).unwrap();
        queue.push(queued).unwrap();
        assert_eq!(queue.take(1, 1000, false).len(), 1);
        assert_eq!(queue.set_experts_available(false).len(), 1);
        assert_eq!(queue.counts(), (0, 1), "what runs goes on");
        assert_eq!(queue.push(queued), Err(AdmissionError::ExpertsUnavailable));
        assert!(queue.set_experts_available(true).is_empty());
        queue.push(queued).unwrap();
    }

    #[test]
    fn requests_that_wait_too_long_are_handed_back() {
        let queue = Queue::new(4, 1);
        queue.push(queued).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        assert!(queue.take_expired(Duration::from_secs(60)).is_empty());
        assert_eq!(queue.take_expired(Duration::from_millis(1)).len(), 1);
        assert_eq!(queue.counts(), (0, 0));
    }
}
