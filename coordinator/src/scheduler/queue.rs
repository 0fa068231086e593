//! Admission: a bounded queue between the callers and the runner, fair between clients
//! ([`super::turns`]).
//!
//! A full queue refuses at once with an estimate of when to retry, because a refused caller can go
//! elsewhere and one that hangs cannot. Its places are shared as well: a client whose address, or who
//! behind the same address, has fewer waiting requests than another gets in, and the other's newest
//! request is refused instead.

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
    /// Whether the model can run steps at present, as far as is known.
    experts_available: bool,
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
                experts_available: true,
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
        if !state.experts_available {
            return Err(AdmissionError::ExpertsUnavailable);
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

    /// Notes whether the experts can be computed. While they cannot, no request is admitted; returns
    /// those that wait, whose turn would be in vain.
    pub(super) fn set_experts_available(&self, available: bool) -> Vec<QueuedRequest> {
        let mut state = self.lock();
        state.experts_available = available;
        // Of a queue that is closed, the runner takes care.
        if available || matches!(state.gate, QueueGate::Aborting | QueueGate::Stopped) {
            return Vec::new();
        }
        let requests = state.waiting.drain_oldest(|_| true);
        for queued in &requests {
            state.live.remove(&queued.id);
        }
        self.changed.notify_all();
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
mod tests;
