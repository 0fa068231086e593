//! Admission: a bounded queue between the callers and the runner, fair between clients
//! ([`super::turns`]).
//!
//! A full queue refuses at once with an estimate of when to retry, because a refused caller can go
//! elsewhere and one that hangs cannot. Its places are shared as well: a client with fewer waiting
//! requests than another gets in, and the other's newest request is refused instead.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::request::{
    AdmissionError, GenerateError, GenerateRequest, GenerationEvent, PromptProgress,
};
use super::turns::{ClientKey, Turns};
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
    /// The request in the log.
    pub(super) fn name(&self) -> String {
        self.request.origin.name(self.id)
    }

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

/// A request that waits or runs.
#[derive(Debug)]
struct LiveRequest {
    client: ClientKey,
    cancelled: Arc<AtomicBool>,
    /// When it left the queue.
    started: Option<Instant>,
}

#[derive(Debug)]
struct QueueState {
    waiting: Turns<QueuedRequest>,
    live: HashMap<u64, LiveRequest>,
    /// Requests of each client that left the queue and have not ended.
    running: HashMap<ClientKey, usize>,
    gate: QueueGate,
    next_id: u64,
    /// Running mean of the time from leaving the queue to the end of a request, once one has ended.
    mean_service: Option<Duration>,
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
                waiting: Turns::default(),
                live: HashMap::new(),
                running: HashMap::new(),
                gate: QueueGate::Open,
                next_id: 0,
                mean_service: None,
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

    /// Whether [`Queue::push`] would admit a request of `client` at this moment.
    pub(super) fn check_room(&self, client: ClientKey) -> Result<(), AdmissionError> {
        let mut state = self.lock();
        let room = self.room(&mut state, client);
        room.or_else(|error| match error {
            AdmissionError::QueueFull { .. } if state.waiting.can_displace(client) => Ok(()),
            error => Err(error),
        })
    }

    fn room(&self, state: &mut QueueState, client: ClientKey) -> Result<(), AdmissionError> {
        match state.gate {
            QueueGate::Open => {}
            QueueGate::Draining | QueueGate::Aborting => return Err(AdmissionError::ShuttingDown),
            QueueGate::Stopped => return Err(AdmissionError::Stopped),
        }
        // Requests whose callers left do not count, although the runner has not dropped them yet.
        state.drop_cancelled();
        let waiting = state.waiting.len();
        // Those that can start at once do not wait.
        let idle = self.max_running.saturating_sub(state.live.len() - waiting);
        let waiting = waiting.saturating_sub(idle);
        if waiting < self.capacity || state.waiting.len() < idle {
            return Ok(());
        }
        Err(AdmissionError::QueueFull {
            waiting,
            own: state.waiting.of(client),
            retry_after_s: self.retry_after(state, client),
        })
    }

    /// Appends the request that `with_id` builds around its id.
    pub(super) fn push(
        &self,
        client: ClientKey,
        with_id: impl FnOnce(u64) -> QueuedRequest,
    ) -> Result<(), AdmissionError> {
        let mut state = self.lock();
        if let Err(error) = self.room(&mut state, client) {
            let AdmissionError::QueueFull { .. } = error else {
                return Err(error);
            };
            let displaced = state.waiting.displace(client).ok_or(error)?;
            self.refuse(&mut state, &displaced);
        }
        let id = state.next_id;
        state.next_id += 1;
        let queued = with_id(id);
        let live = LiveRequest {
            client,
            cancelled: Arc::clone(&queued.cancelled),
            started: None,
        };
        tracing::debug!(
            request = queued.name(),
            client_request = queued.request.origin.client_id,
            prompt_tokens = queued.request.prompt.len(),
            "request queued"
        );
        state.live.insert(id, live);
        let bytes = queued.kv_bytes;
        state.waiting.push(client, bytes, queued);
        self.changed.notify_all();
        Ok(())
    }

    /// Tells a request that lost its place to another client.
    fn refuse(&self, state: &mut QueueState, displaced: &QueuedRequest) {
        let client = displaced.request.origin.client;
        state.live.remove(&displaced.id);
        let retry_after_s = self.retry_after(state, client);
        let error = GenerateError::Displaced { retry_after_s };
        // The channel has capacity for every event, and a receiver that is gone needs none.
        let _ = displaced.events.try_send(GenerationEvent::Failed(error));
    }

    /// Seconds until the requests that have their turn before another one of `client` have left the
    /// queue, if requests go on to take as long as they did.
    fn retry_after(&self, state: &QueueState, client: ClientKey) -> u64 {
        let rounds = state.waiting.before(client) as f64 / self.max_running as f64;
        // Before one has ended, they take at least as long as the oldest has run so far.
        let oldest = || state.live.values().filter_map(|live| live.started).min();
        let service = state
            .mean_service
            .or_else(|| oldest().map(|started| started.elapsed()))
            .unwrap_or(Duration::from_secs(1));
        (service.as_secs_f64() * rounds).ceil().clamp(1.0, 3600.0) as u64
    }

    /// Takes up to `count` waiting requests whose caches fit into `kv_bytes` together, in turns (see
    /// [`Turns::take`]). With `wait`, sleeps until a request waits or the gate closes.
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
        let QueueState {
            waiting,
            live,
            running,
            ..
        } = &mut *state;
        let taken = waiting.take(count, kv_bytes, running);
        for queued in &taken {
            let client = queued.request.origin.client;
            *running.entry(client).or_default() += 1;
            if let Some(live) = live.get_mut(&queued.id) {
                live.started = Some(Instant::now());
            }
        }
        taken
    }

    /// Removes the requests that have waited longer than `limit`.
    pub(super) fn take_expired(&self, limit: Duration) -> Vec<QueuedRequest> {
        let mut state = self.lock();
        let over = |queued: &QueuedRequest| queued.submitted.elapsed() > limit;
        let requests = state.waiting.drain_oldest(over);
        for queued in &requests {
            state.live.remove(&queued.id);
        }
        requests
    }

    /// Notes that a request taken earlier has ended, `service` after it left the queue.
    pub(super) fn finished(&self, id: u64, service: Duration) {
        let mut state = self.lock();
        let ended = state.live.remove(&id).map(|live| live.client);
        if let Some(client) = ended
            && let Some(running) = state.running.get_mut(&client)
        {
            *running -= 1;
            if *running == 0 {
                state.running.remove(&client);
            }
        }
        let mean = state.mean_service.unwrap_or(service);
        state.mean_service = Some((mean * 7 + service) / 8);
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
            for live in state.live.values() {
                live.cancelled.store(true, Ordering::Relaxed);
            }
        }
        self.changed.notify_all();
    }

    /// Empties the queue after the runner has ended; dropping the requests informs their callers.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        state.waiting.clear();
        state.live.clear();
        state.running.clear();
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
    use crate::scheduler::request::{AnswerFormat, RequestOrigin};

    const ONE: ClientKey = ClientKey(0);

    fn queued_by(client: ClientKey) -> impl Fn(u64) -> QueuedRequest {
        move |id| {
            let mut queued = queued(id);
            let origin = RequestOrigin {
                client,
                ..RequestOrigin::default()
            };
            queued.request.origin = origin;
            queued
        }
    }

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
            queue.push(ONE, queued).unwrap();
        }
        assert!(matches!(
            queue.push(ONE, queued),
            Err(AdmissionError::QueueFull {
                waiting: 1,
                own: 3,
                ..
            })
        ));
        assert_eq!(queue.take(2, 1000, false).len(), 2);
        assert!(matches!(
            queue.push(ONE, queued),
            Err(AdmissionError::QueueFull { waiting: 1, .. })
        ));
        queue.finished(0, Duration::from_secs(1));
        queue.push(ONE, queued).unwrap();
    }

    #[test]
    fn a_caller_that_left_makes_room_at_once() {
        let queue = Queue::new(0, 1);
        let mut flag = None;
        queue
            .push(ONE, |id| {
                let queued = queued(id);
                flag = Some(Arc::clone(&queued.cancelled));
                queued
            })
            .unwrap();
        assert!(queue.push(ONE, queued).is_err());
        flag.unwrap().store(true, Ordering::Relaxed);
        queue.push(ONE, queued).unwrap();
        assert_eq!(queue.counts(), (1, 0));
    }

    #[test]
    fn requests_leave_in_order_and_without_those_whose_callers_left() {
        let queue = Queue::new(8, 2);
        let mut flags = Vec::new();
        for _ in 0..5 {
            queue
                .push(ONE, |id| {
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
    fn a_newcomer_gets_into_a_full_queue_and_the_next_place() {
        let queue = Queue::new(4, 1);
        let (many, few) = (ClientKey(1), ClientKey(2));
        let mut events = Vec::new();
        for _ in 0..5 {
            queue
                .push(many, |id| {
                    let (sender, receiver) = mpsc::channel(1);
                    events.push(receiver);
                    QueuedRequest {
                        events: sender,
                        ..queued_by(many)(id)
                    }
                })
                .unwrap();
        }
        assert_eq!(queue.take(1, 1000, false).len(), 1);
        assert!(queue.check_room(many).is_err());
        assert!(queue.check_room(few).is_ok());
        queue.push(few, queued_by(few)).unwrap();
        assert_eq!(queue.counts(), (4, 1));
        let event = events[4].try_recv();
        assert!(
            matches!(
                event,
                Ok(GenerationEvent::Failed(GenerateError::Displaced {
                    retry_after_s: 1..
                }))
            ),
            "{event:?}"
        );
        queue.finished(0, Duration::from_secs(1));
        assert_eq!(queue.take(1, 1000, false)[0].request.origin.client, few);
        // Both have one waiting and one running at most: nobody gives way any more.
        queue.push(few, queued_by(few)).unwrap();
        assert!(queue.push(many, queued_by(many)).is_err());
    }

    #[test]
    fn a_request_waits_for_memory_while_smaller_ones_pass() {
        let queue = Queue::new(8, 8);
        for (client, bytes) in [(1, 10), (2, 30), (3, 10)] {
            let queued = |id| QueuedRequest {
                kv_bytes: bytes,
                ..queued_by(ClientKey(client))(id)
            };
            queue.push(ClientKey(client), queued).unwrap();
        }
        let ids = |requests: Vec<QueuedRequest>| {
            requests.iter().map(|queued| queued.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(queue.take(8, 39, true)), [0, 2]);
        assert!(queue.take(8, 29, false).is_empty());
        assert_eq!(ids(queue.take(8, 40, false)), [1]);
    }

    #[test]
    fn an_abort_cancels_all_requests_and_still_hands_them_over() {
        let queue = Queue::new(8, 1);
        for _ in 0..3 {
            queue.push(ONE, queued).unwrap();
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
            queue.push(ONE, queued).unwrap();
        }
        match queue.push(ONE, queued) {
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
        assert_eq!(queue.push(ONE, queued), Err(AdmissionError::ShuttingDown));
        queue.close(QueueGate::Stopped);
        queue.close(QueueGate::Draining);
        assert_eq!(queue.push(ONE, queued), Err(AdmissionError::Stopped));
    }

    #[test]
    fn requests_that_wait_too_long_are_handed_back() {
        let queue = Queue::new(4, 1);
        queue.push(ONE, queued).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        assert!(queue.take_expired(Duration::from_secs(60)).is_empty());
        assert_eq!(queue.take_expired(Duration::from_millis(1)).len(), 1);
        assert_eq!(queue.counts(), (0, 0));
    }
}
