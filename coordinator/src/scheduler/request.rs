//! What a caller submits to the scheduler, and the events that come back.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::turns::ClientKey;
use crate::engine::{EngineError, ExpertError};
use crate::prompt::{AnswerStart, FinishReason, OutputEvent};
use crate::sampling::{LogProbs, ParamError, SampleError, SamplingParams};

/// A checked request: everything in it is within its bounds, except for the bounds that depend on
/// the model (its context and its vocabulary), which admission checks.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// Whose request it is, and its names.
    pub origin: RequestOrigin,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; `None` leaves the limit to the scheduler.
    pub max_tokens: Option<usize>,
    /// How tokens are drawn from the logits.
    pub sampling: SamplingParams,
    /// The answer ends before the first occurrence of any of these texts.
    pub stop: Vec<String>,
    /// Whether the answer continues after an end-of-sequence token; for measurements.
    pub ignore_eos: bool,
    /// How many alternatives to report with each token's log-probability; `None` reports neither.
    pub logprobs: Option<usize>,
    /// How the tokens of the answer are read.
    pub format: AnswerFormat,
}

impl GenerateRequest {
    /// A request with a random seed, default sampling, and neither stop texts nor a token limit.
    /// All requests are built on it, so a new field gets its default here.
    #[must_use]
    pub fn new(prompt: Vec<u32>, format: AnswerFormat) -> Self {
        GenerateRequest {
            origin: RequestOrigin::default(),
            prompt,
            max_tokens: None,
            sampling: SamplingParams {
                seed: random_seed(),
                ..SamplingParams::default()
            },
            stop: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            format,
        }
    }
}

/// Where a request comes from.
#[derive(Clone, Debug, Default)]
pub struct RequestOrigin {
    /// The client, between whom and others the queue is fair.
    pub client: ClientKey,
    /// The id of the answer, under which the log has the request; empty for requests that have none.
    pub id: String,
    /// The id that the client gave the request.
    pub client_id: Option<String>,
}

impl RequestOrigin {
    /// The request in the log: its id, or else its `number` in the queue.
    pub(super) fn name(&self, number: u64) -> String {
        if self.id.is_empty() {
            number.to_string()
        } else {
            self.id.clone()
        }
    }
}

/// A seed for requests that name none, different for each of them.
#[must_use]
pub fn random_seed() -> u64 {
    // The standard library keys each of its hash tables at random.
    RandomState::new().hash_one(0u64)
}

/// How the tokens of an answer are read.
#[derive(Clone, Copy, Debug)]
pub enum AnswerFormat {
    /// As plain text, all of it content.
    Text,
    /// As a chat answer: reasoning, content and tool calls.
    Chat {
        /// The part of the answer that follows the prompt.
        start: AnswerStart,
        /// Whether tool calls are recognised.
        tools_offered: bool,
    },
}

/// Tokens counted for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenUsage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, including the one that ends the answer.
    pub completion_tokens: usize,
    /// The completion tokens that belong to the reasoning, its end marker included.
    pub reasoning_tokens: usize,
}

/// How long the phases of a request took.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestTimings {
    /// From submission to leaving the queue.
    pub queued: Duration,
    /// From leaving the queue to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// Why an answer ended, and what it took.
#[derive(Clone, Copy, Debug)]
pub struct GenerationSummary {
    /// Why the answer ended.
    pub reason: FinishReason,
    /// Tokens of prompt and answer.
    pub usage: TokenUsage,
    /// Durations of the request's phases.
    pub timings: RequestTimings,
}

/// A token of an answer.
#[derive(Clone, Debug)]
pub struct GeneratedToken {
    /// Id of the token.
    pub token: u32,
    /// The output that the token completed. Often empty: text is held back while it could still
    /// become a marker, a stop text or the rest of a character.
    pub deltas: Vec<OutputEvent>,
    /// Whether the token belongs to the reasoning.
    pub reasoning: bool,
    /// Present if the request wants them.
    pub logprobs: Option<LogProbs>,
    /// Tokens counted up to this one.
    pub usage: TokenUsage,
}

/// An event of a request under way.
#[derive(Clone, Debug)]
pub enum GenerationEvent {
    /// A token was generated.
    Token(GeneratedToken),
    /// The answer is complete. One of the two possible last events.
    Finished {
        /// The output that was still held back.
        deltas: Vec<OutputEvent>,
        /// Why the answer ended, and what it took.
        summary: GenerationSummary,
    },
    /// The answer stays incomplete. The other possible last event.
    Failed(GenerateError),
}

/// How much of the prompt was computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptProgress {
    /// Prompt tokens computed.
    pub done: usize,
    /// Tokens of the prompt; 0 while the request is in the queue.
    pub total: usize,
    /// Whether the request has left the queue.
    pub started: bool,
}

/// Why a request was not admitted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AdmissionError {
    /// The queue is full.
    #[error(
        "the queue is full: {waiting} requests wait, {own} of them this client's; try again in \
         {retry_after_s} s"
    )]
    QueueFull {
        /// Requests in the queue that could not start at once.
        waiting: usize,
        /// Requests of the same client in the queue.
        own: usize,
        /// Estimated seconds until the queue has moved on.
        retry_after_s: u64,
    },
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {}{prompt} tokens; the context holds {context}, of which the answer needs \
         at least one",
        if *.exact { "" } else { "more than " }
    )]
    PromptTooLong {
        /// Tokens of the prompt that were counted.
        prompt: usize,
        /// Whether those are all of them.
        exact: bool,
        /// Tokens that prompt and answer may have together.
        context: usize,
    },
    /// The request's caches would never fit into the memory for KV caches.
    #[error(
        "a prompt of {prompt} tokens and an answer of {answer} tokens need {bytes} bytes of KV \
         cache; the server has {budget} bytes, enough for {longest} tokens"
    )]
    KvMemory {
        /// Tokens of the prompt.
        prompt: usize,
        /// Most tokens of the answer.
        answer: usize,
        /// Bytes that both need.
        bytes: u64,
        /// Bytes of the memory for KV caches.
        budget: u64,
        /// Tokens of the longest sequence that fits.
        longest: usize,
    },
    /// The prompt has no tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The prompt has a token id that the model does not know.
    #[error("token id {token} is outside the vocabulary of {vocab} tokens")]
    UnknownToken {
        /// The first such id.
        token: u32,
        /// Tokens of the vocabulary.
        vocab: usize,
    },
    /// A sampling parameter is out of its range.
    #[error("{0}")]
    Parameter(#[from] ParamError),
    /// Some experts can be computed nowhere at present.
    #[error("no expert node holds some of the model's experts at present; try again later")]
    ExpertsUnavailable,
    /// The scheduler drains or aborts.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The thread that runs the model has ended.
    #[error("the engine has stopped; the server must be restarted")]
    Stopped,
}

/// Why the scheduler could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system gave no thread.
    #[error("failed to start the scheduler's thread: {0}")]
    Thread(#[from] std::io::Error),
    /// Not even the shortest request fits into the memory for KV caches.
    #[error(
        "{budget} bytes of KV cache are too few: the shortest sequence needs at least {least} bytes"
    )]
    KvMemory {
        /// Bytes of the memory for KV caches.
        budget: u64,
        /// Bytes of the shortest sequence.
        least: u64,
    },
}

/// Why an admitted request did not finish.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GenerateError {
    /// A step failed because the routed experts of a layer could not be computed.
    #[error("the experts could not be computed: {0}")]
    Experts(ExpertError),
    /// A step failed for another reason.
    #[error("the engine failed: {0}")]
    Engine(Arc<EngineError>),
    /// No token could be drawn from the logits.
    #[error("the engine failed: {0}")]
    Sampling(SampleError),
    /// The queue was full, and the request gave its place to a client or an address with fewer.
    #[error(
        "the queue is full, and the place of this request went to a client or an address with \
         fewer requests; try again in {retry_after_s} s"
    )]
    Displaced {
        /// Estimated seconds until the queue has moved on.
        retry_after_s: u64,
    },
    /// The request waited too long in the queue.
    #[error("the request was dropped after waiting {limit_s} s in the queue")]
    QueueTimeout {
        /// The longest time that a request may wait, in seconds.
        limit_s: u64,
    },
    /// Some experts could be computed nowhere when the request's turn was near.
    #[error("no expert node holds some of the model's experts at present; try again later")]
    ExpertsUnavailable,
    /// The server stopped before the request had finished.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The thread that runs the model has ended.
    #[error("the engine has stopped; the server must be restarted")]
    Stopped,
}

impl From<EngineError> for GenerateError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Experts(error) => GenerateError::Experts(error),
            other => GenerateError::Engine(Arc::new(other)),
        }
    }
}

impl From<SampleError> for GenerateError {
    fn from(error: SampleError) -> Self {
        GenerateError::Sampling(error)
    }
}

/// A request under way. Dropping it cancels the request, which stops its work within one layer.
#[derive(Debug)]
pub struct Generation {
    pub(super) events: mpsc::Receiver<GenerationEvent>,
    pub(super) progress: watch::Receiver<PromptProgress>,
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) prompt_tokens: usize,
}

impl Generation {
    /// Waits for the next event. The last one is `Finished` or `Failed`; another call after it
    /// returns [`GenerateError::Stopped`], as it does once the runner has died.
    pub async fn next_event(&mut self) -> GenerationEvent {
        self.events
            .recv()
            .await
            .unwrap_or(GenerationEvent::Failed(GenerateError::Stopped))
    }

    /// A receiver that follows how much of the prompt was computed.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<PromptProgress> {
        self.progress.clone()
    }

    /// Length of the prompt in tokens.
    #[must_use]
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}
