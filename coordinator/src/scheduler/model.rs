//! What the scheduler needs of a model: steps over chunks of several sequences.
//!
//! The engine implements it; tests script it. A chunk's logits depend on its own sequence alone,
//! so whatever else is in the step never shows in a request's output.

use std::sync::atomic::AtomicBool;

use super::kv_memory::BytesOf;

/// Which rows of logits a chunk wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// None: the middle of a prompt.
    Nothing,
    /// The last token's row, from which the next token is drawn.
    Last,
}

/// Consecutive tokens of one sequence within a step.
#[derive(Debug)]
pub struct StepChunk<'a, S> {
    pub sequence: &'a mut S,
    /// Never empty.
    pub tokens: &'a [u32],
    pub want: Want,
    /// Set by whoever lost interest; looked at between layers.
    pub cancelled: &'a AtomicBool,
}

/// What a step computed.
pub trait StepResult {
    /// The `vocab` logits of the chunk's last token. Empty for a chunk that wanted nothing or that
    /// was cancelled.
    fn last_logits(&self, chunk: usize) -> &[f32];

    /// Whether the chunk was dropped on the way; its sequence is then of no further use.
    fn cancelled(&self, chunk: usize) -> bool;
}

/// Why a step failed. Every sequence of the step is then of no further use.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StepError {
    /// The experts could not be reached or refused the work: trying again later may help.
    #[error("{0}")]
    Experts(String),
    /// Anything else.
    #[error("{0}")]
    Engine(String),
}

/// A model that takes steps.
pub trait StepModel: Send + 'static {
    /// The state of one sequence (KV cache and position).
    type Sequence: Send;

    /// The result of a step, borrowed from the model's buffers.
    type Output<'a>: StepResult
    where
        Self: 'a;

    fn new_sequence(&self) -> Self::Sequence;

    /// Appends each chunk's tokens to its sequence and computes the logits asked for.
    ///
    /// # Errors
    /// See [`StepError`]; nothing of the step may be used afterwards.
    fn step(
        &mut self,
        chunks: &mut [StepChunk<'_, Self::Sequence>],
    ) -> Result<Self::Output<'_>, StepError>;

    /// Bytes that a sequence takes at most, by its tokens, if no step adds more than `chunk` of
    /// them to it.
    fn sequence_bytes(&self, chunk: usize) -> BytesOf;

    /// Logits per row.
    fn vocab(&self) -> usize;

    /// Tokens that one sequence may hold, prompt and answer together.
    fn context(&self) -> usize;
}
