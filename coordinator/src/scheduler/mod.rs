//! From requests to steps: which requests wait, which run, what a step holds, and what becomes of
//! its logits.
//!
//! ```text
//! submit ─ queue ─► runner (one thread) ─ batcher: chunks ─► model.step ─ answer: text ─► events
//! ```
//!
//! Callers live on the async runtime and the runner on a thread of its own. They communicate over
//! two bounded channels: the queue, which refuses when full, and each request's events, whose
//! channel has capacity for all of them, so that no client slows down the others.

mod answer;
mod batcher;
mod kv_memory;
mod limits;
mod model;
mod queue;
mod request;
mod runner;
pub mod scheduler_metrics;
mod turns;
mod vocabulary;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

pub use kv_memory::BytesOf;
pub use limits::SchedulerLimits;
pub use model::StepModel;
pub use request::{
    AdmissionError, AnswerFormat, GenerateError, GenerateRequest, GeneratedToken, Generation,
    GenerationEvent, GenerationSummary, PromptProgress, RequestOrigin, RequestTimings, StartError,
    TokenUsage, random_seed,
};
pub use turns::ClientKey;
pub use vocabulary::Vocabulary;

use crate::sampling::Sampler;
use kv_memory::{KvGrant, KvMemory};
use queue::{Queue, QueueGate, QueuedRequest};
use runner::Runner;

/// Tokens of the shortest sequence: a prompt of one token and its answer of one.
const LEAST_TOKENS: usize = 2;

/// Whether the scheduler takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchedulerState {
    /// Requests are admitted.
    Serving,
    /// No request is admitted; those admitted before are finished or cancelled.
    Draining,
    /// The thread that runs the model has ended.
    Stopped,
}

/// The scheduler's state and load at one moment.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerStatus {
    /// Whether requests are admitted.
    pub state: SchedulerState,
    /// Requests that take part in steps.
    pub running: usize,
    /// Requests in the queue.
    pub waiting: usize,
}

/// The only way to a model for its callers: it admits requests and runs them on its own thread.
#[derive(Debug)]
pub struct Scheduler {
    queue: Arc<Queue>,
    /// Tokens of the vocabulary.
    vocab: usize,
    /// Most tokens of a sequence, by the model alone.
    context: usize,
    kv_memory: KvMemory,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Scheduler {
    /// Starts the runner's thread, which takes ownership of the model.
    ///
    /// # Errors
    /// The thread could not be started, or the memory for KV caches is too small for any request.
    pub fn start<M: StepModel>(
        model: M,
        vocabulary: Arc<Vocabulary>,
        limits: SchedulerLimits,
    ) -> Result<Self, StartError> {
        let limits = limits.at_least_one();
        let (vocab, context) = (model.vocab(), model.context());
        let (budget, bytes_of) = (limits.kv_memory, model.sequence_bytes(limits.chunk));
        let kv_memory = KvMemory::new(budget, bytes_of, limits.max_sequences, context);
        if kv_memory.longest() < LEAST_TOKENS {
            let least = kv_memory.bytes_of(LEAST_TOKENS);
            return Err(StartError::KvMemory { budget, least });
        }
        scheduler_metrics::kv_budget(budget);
        let queue = Arc::new(Queue::new(limits.queue, limits.max_sequences));
        let runner = Runner::new(model, vocabulary, Arc::clone(&queue), limits);
        let thread = std::thread::Builder::new()
            .name("ds4-runner".into())
            .spawn(move || runner.run())?;
        Ok(Scheduler {
            queue,
            vocab,
            context,
            kv_memory,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Most tokens that a prompt and its answer may have together.
    #[must_use]
    pub fn context(&self) -> usize {
        self.kv_memory.longest()
    }

    /// Checks whether a request of `client` would be admitted at this moment. Callers check before they build a
    /// prompt, so that a flood of requests is refused cheaply; [`Scheduler::submit`] decides.
    ///
    /// # Errors
    /// The errors of [`Scheduler::submit`] that do not depend on the request.
    pub fn check_room(&self, client: ClientKey) -> Result<(), AdmissionError> {
        self.queue.check_room(client)
    }

    /// Admits a request, or refuses it at once.
    ///
    /// # Errors
    /// See [`AdmissionError`].
    pub fn submit(&self, request: GenerateRequest) -> Result<Generation, AdmissionError> {
        let prompt = request.prompt.len();
        if prompt == 0 {
            return Err(AdmissionError::EmptyPrompt);
        }
        if prompt >= self.context {
            return Err(AdmissionError::PromptTooLong {
                prompt,
                exact: true,
                context: self.context,
            });
        }
        let vocab = self.vocab;
        if let Some(&token) = request
            .prompt
            .iter()
            .find(|&&token| token as usize >= vocab)
        {
            return Err(AdmissionError::UnknownToken { token, vocab });
        }
        let sampler = Sampler::new(request.sampling)?;
        let KvGrant { max_tokens, bytes } =
            self.kv_memory
                .grant(prompt, request.max_tokens, self.context)?;
        // One event per token, and the last one.
        let (sender, events) = mpsc::channel(max_tokens + 1);
        let (progress_sender, progress) = watch::channel(PromptProgress::default());
        let cancelled = Arc::default();
        let flag = Arc::clone(&cancelled);
        self.queue.push(request.origin.client, |id| QueuedRequest {
            id,
            request,
            sampler,
            max_tokens,
            kv_bytes: bytes,
            events: sender,
            progress: progress_sender,
            cancelled: flag,
            submitted: Instant::now(),
        })?;
        Ok(Generation {
            events,
            progress,
            cancelled,
            prompt_tokens: prompt,
        })
    }

    /// The present state and load.
    #[must_use]
    pub fn status(&self) -> SchedulerStatus {
        let (waiting, running) = self.queue.counts();
        let state = match self.queue.gate() {
            QueueGate::Open => SchedulerState::Serving,
            QueueGate::Draining | QueueGate::Aborting => SchedulerState::Draining,
            QueueGate::Stopped => SchedulerState::Stopped,
        };
        SchedulerStatus {
            state,
            running,
            waiting,
        }
    }

    /// Notes whether the routed experts can be computed. While they cannot, requests are refused at
    /// once, and those that wait for their turn fail; those that run go on, since nodes may return
    /// before their time is over.
    pub fn set_experts_available(&self, available: bool) {
        for queued in self.queue.set_experts_available(available) {
            runner::send(
                &queued,
                GenerationEvent::Failed(GenerateError::ExpertsUnavailable),
            );
        }
    }

    /// Stops admitting requests; those admitted before are finished.
    pub fn close(&self) {
        self.queue.close(QueueGate::Draining);
    }

    /// Closes, waits up to `grace` for the requests to finish, cancels the rest, which takes no
    /// longer than a layer, and joins the thread. Returns whether all requests finished.
    pub async fn shut_down(&self, grace: Duration) -> bool {
        self.close();
        let finished = self.wait_stopped(grace).await;
        if !finished {
            self.queue.close(QueueGate::Aborting);
            self.wait_stopped(Duration::from_secs(30)).await;
        }
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread.filter(JoinHandle::is_finished) {
            // A panic was already reported on stderr.
            let _ = thread.join();
        }
        finished
    }

    async fn wait_stopped(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.queue.gate() != QueueGate::Stopped {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        true
    }

    /// Resolves when the runner has ended, also by a panic.
    pub async fn stopped(&self) {
        while self.queue.gate() != QueueGate::Stopped {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.queue.close(QueueGate::Aborting);
    }
}
