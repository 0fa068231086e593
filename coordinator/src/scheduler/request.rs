//! What a caller asks of the scheduler and what comes back.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::prompt::{AnswerStart, FinishReason, OutputEvent};
use crate::sampling::{LogProbs, ParamError, SamplingParams};

/// A checked request: everything in it is within its bounds except what only the model knows
/// (its context and its vocabulary), which admission checks.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    pub prompt: Vec<u32>,
    /// Tokens to generate at most; the rest of the context when absent.
    pub max_tokens: Option<usize>,
    pub sampling: SamplingParams,
    /// The answer ends before the first of these texts.
    pub stop: Vec<String>,
    /// Goes on after an end-of-sequence token; for measurements.
    pub ignore_eos: bool,
    /// How many alternatives to report beside each token's own log-probability.
    pub logprobs: Option<usize>,
    pub reading: Reading,
}

/// A seed for callers that name none: no two requests share it.
#[must_use]
pub fn random_seed() -> u64 {
    // The standard library keys each of its hash tables at random.
    RandomState::new().hash_one(0u64)
}

/// How the tokens of an answer are read.
#[derive(Clone, Debug)]
pub enum Reading {
    /// As plain text, all of it content.
    Plain,
    /// As a chat answer: reasoning, content and tool calls.
    Chat {
        /// Where in an answer the prompt leaves the model.
        start: AnswerStart,
        /// Whether tool calls are looked for.
        tools_offered: bool,
    },
}

/// Tokens counted for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    /// Those completion tokens that were reasoning.
    pub reasoning_tokens: usize,
}

/// How long the parts of a request took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    pub queued: Duration,
    /// From leaving the queue to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// The end of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Finish {
    pub reason: FinishReason,
    pub usage: Usage,
    pub timings: Timings,
}

/// A token of an answer.
#[derive(Clone, Debug)]
pub struct Drawn {
    pub token: u32,
    /// Often empty: text is held back while it could still become a marker, a stop text or the
    /// rest of a character.
    pub deltas: Vec<OutputEvent>,
    /// Whether the token belongs to the reasoning.
    pub reasoning: bool,
    /// If they were asked for.
    pub logprobs: Option<LogProbs>,
    /// What has been used so far.
    pub usage: Usage,
}

/// Something that happened to a request.
#[derive(Clone, Debug)]
pub enum Event {
    /// A token was drawn.
    Token(Drawn),
    /// One of the two possible last events, with the text that was still held back.
    Finished {
        deltas: Vec<OutputEvent>,
        finish: Finish,
    },
    /// The other possible last event.
    Failed(GenerateError),
}

/// How far the prompt has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub done: usize,
    pub total: usize,
    /// The request has left the queue.
    pub started: bool,
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AdmissionError {
    #[error("{waiting} requests are waiting already; try again in {retry_after_s} s")]
    QueueFull { waiting: usize, retry_after_s: u64 },
    #[error(
        "the prompt has {prompt} tokens and the context holds {context}, of which at least one \
         must be left for the answer"
    )]
    PromptTooLong { prompt: usize, context: usize },
    #[error(
        "a prompt of {prompt} tokens and an answer of {answer} take {bytes} bytes of KV cache; the \
         server has {budget}, enough for {longest} tokens"
    )]
    KvMemory {
        prompt: usize,
        answer: usize,
        bytes: u64,
        budget: u64,
        longest: usize,
    },
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("token id {token} is outside the vocabulary of {vocab}")]
    UnknownToken { token: u32, vocab: usize },
    #[error("{0}")]
    Parameter(#[from] ParamError),
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("the engine has stopped; the server must be restarted")]
    Stopped,
}

/// Why there is no scheduler.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the scheduler's thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
    #[error("{budget} bytes of KV cache hold no sequence, which takes at least {least}")]
    KvMemory { budget: u64, least: u64 },
}

/// Why a request that was taken did not finish.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    #[error("the experts could not be computed: {0}")]
    Experts(String),
    #[error("the engine failed: {0}")]
    Engine(String),
    #[error("the request waited {0} s and no place came free")]
    WaitedTooLong(u64),
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("the engine has stopped; the server must be restarted")]
    Stopped,
}

/// A request under way. Dropping it stops the work within one layer.
#[derive(Debug)]
pub struct Generation {
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) progress: watch::Receiver<Progress>,
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) prompt_tokens: usize,
}

impl Generation {
    /// The next event; the last one is `Finished` or `Failed`, after which this must not be called
    /// again (it would report [`GenerateError::Stopped`], as it does for a runner that died).
    pub async fn next_event(&mut self) -> Event {
        self.events
            .recv()
            .await
            .unwrap_or(Event::Failed(GenerateError::Stopped))
    }

    /// Follows how far the prompt has been read.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Tokens of the prompt.
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
