//! From requests to steps: who waits, who runs, what a step holds, what becomes of its tokens.
//!
//! ```text
//! submit ─ queue ─► runner (one thread) ─ batcher: chunks ─► model.step ─ answer: token, text ─► events
//! ```
//!
//! Callers live on the async runtime and the runner on a thread of its own. They meet in two
//! bounded places: the queue, which refuses when full, and each request's event channel, which has
//! room for all that can come, so that no client slows the others down.

mod answer;
mod batcher;
mod engine_model;
mod kv_memory;
pub mod measures;
mod model;
mod queue;
mod request;
mod runner;
mod vocabulary;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

pub use kv_memory::BytesOf;
pub use model::{StepChunk, StepError, StepModel, StepResult, Want};
pub use request::{
    AdmissionError, Drawn, Event, Finish, GenerateError, GenerateRequest, Generation, Progress,
    Reading, StartError, Timings, Usage, random_seed,
};
pub use vocabulary::Vocabulary;

use crate::sampling::Sampler;
use batcher::BatchLimits;
use kv_memory::{Grant, KvMemory};
use queue::{Gate, Job, Queue};
use runner::Runner;

/// How much the scheduler takes on.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerLimits {
    /// Requests that run at the same time.
    pub max_sequences: usize,
    /// Requests that wait behind them.
    pub queue: usize,
    /// Prompt tokens in one step.
    pub chunk: usize,
    /// A request that has waited this long is given up.
    pub max_wait: Duration,
    /// Bytes that the KV caches of all running requests may take.
    pub kv_memory: u64,
}

impl Default for SchedulerLimits {
    fn default() -> Self {
        SchedulerLimits {
            max_sequences: 8,
            queue: 64,
            chunk: 512,
            max_wait: Duration::from_secs(600),
            kv_memory: u64::MAX,
        }
    }
}

/// A prompt of one token and its answer of one.
const LEAST_TOKENS: usize = 2;

/// What the scheduler is up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Serving,
    /// Finishing what it has.
    Draining,
    /// The runner has ended.
    Stopped,
}

/// A moment's figures.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    pub health: Health,
    pub running: usize,
    pub waiting: usize,
}

/// The door to the model.
#[derive(Debug)]
pub struct Scheduler {
    queue: Arc<Queue>,
    vocab: usize,
    context: usize,
    kv_memory: KvMemory,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Scheduler {
    /// Starts the runner's thread, which owns the model from now on.
    ///
    /// # Errors
    /// The thread could not be started, or the memory for KV caches is too small for any request.
    pub fn start<M: StepModel>(
        model: M,
        vocabulary: Arc<Vocabulary>,
        limits: SchedulerLimits,
    ) -> Result<Self, StartError> {
        let places = limits.max_sequences.max(1);
        let queue = Arc::new(Queue::new(limits.queue, places));
        let (vocab, context) = (model.vocab(), model.context());
        let chunk = limits.chunk.max(1);
        let batch = BatchLimits::for_chunk(chunk);
        let budget = limits.kv_memory;
        let kv_memory = KvMemory::new(budget, model.sequence_bytes(chunk), places, context);
        if kv_memory.longest() < LEAST_TOKENS {
            let least = kv_memory.bytes_of(LEAST_TOKENS);
            return Err(StartError::KvMemory { budget, least });
        }
        measures::kv_budget(budget);
        let for_runner = Arc::clone(&queue);
        let thread = std::thread::Builder::new()
            .name("ds4-runner".into())
            .spawn(move || {
                Runner::new(
                    model,
                    vocabulary,
                    for_runner,
                    places,
                    batch,
                    limits.max_wait,
                    budget,
                )
                .run();
            })?;
        Ok(Scheduler {
            queue,
            vocab,
            context,
            kv_memory,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Tokens that a prompt and its answer may have together.
    #[must_use]
    pub fn context(&self) -> usize {
        self.kv_memory.longest()
    }

    /// Whether a request would find a place now. Asked before the work of building a prompt, so
    /// that a flood of requests is refused cheaply; [`Scheduler::submit`] decides.
    ///
    /// # Errors
    /// As [`Scheduler::submit`] would say.
    pub fn check_room(&self) -> Result<(), AdmissionError> {
        self.queue.check_room()
    }

    /// Takes a request on, or says at once why not.
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
        let Grant { max_tokens, bytes } =
            self.kv_memory
                .grant(prompt, request.max_tokens, self.context)?;
        // One event a token and the last one.
        let (sender, events) = mpsc::channel(max_tokens + 1);
        let (progress_sender, progress) = watch::channel(Progress::default());
        let cancelled = Arc::default();
        let flag = Arc::clone(&cancelled);
        self.queue.push(|id| Job {
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

    /// What is going on.
    #[must_use]
    pub fn status(&self) -> Status {
        let (waiting, running) = self.queue.counts();
        let health = match self.queue.gate() {
            Gate::Open => Health::Serving,
            Gate::Draining | Gate::Aborting => Health::Draining,
            Gate::Stopped => Health::Stopped,
        };
        Status {
            health,
            running,
            waiting,
        }
    }

    /// Takes nothing new from now on; what is here is finished.
    pub fn close(&self) {
        self.queue.close(Gate::Draining);
    }

    /// Closes, waits up to `grace` for the requests to finish, then gives the rest up, which takes
    /// no longer than a layer, and joins the thread. Returns whether everything was finished.
    pub async fn shut_down(&self, grace: Duration) -> bool {
        self.close();
        let finished = self.wait_stopped(grace).await;
        if !finished {
            self.queue.close(Gate::Aborting);
            self.wait_stopped(Duration::from_secs(30)).await;
        }
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread.filter(JoinHandle::is_finished) {
            // A panic has been reported on stderr already.
            let _ = thread.join();
        }
        finished
    }

    async fn wait_stopped(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.queue.gate() != Gate::Stopped {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        true
    }

    /// Resolves when the runner has ended, for whatever reason.
    pub async fn stopped(&self) {
        while self.queue.gate() != Gate::Stopped {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.queue.close(Gate::Aborting);
    }
}
