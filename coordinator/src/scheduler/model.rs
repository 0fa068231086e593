//! What the scheduler needs of a model: steps over chunks of several sequences, in the engine's own
//! types.
//!
//! The engine implements it; tests script it. A chunk's logits depend on its own sequence alone, so
//! a request's output does not depend on the other requests of its steps.

use super::kv_memory::BytesOf;
use crate::engine::{Chunk, Engine, EngineError, Sequence, StepOutput};

/// A model that takes steps.
pub trait StepModel: Send + 'static {
    /// The state of one sequence: its KV cache and position.
    type Sequence: Send;

    /// An empty sequence, to be passed to this model's steps only.
    fn new_sequence(&self) -> Self::Sequence;

    /// Appends each chunk's tokens to its sequence and computes the wanted logits.
    ///
    /// # Errors
    /// See [`EngineError`]; no sequence of the step may be used afterwards.
    fn step(
        &mut self,
        chunks: &mut [Chunk<'_, Self::Sequence>],
    ) -> Result<StepOutput<'_>, EngineError>;

    /// The most bytes that a sequence occupies, as a function of its length in tokens, if no step
    /// appends more than `chunk` of them.
    fn sequence_bytes(&self, chunk: usize) -> BytesOf;

    /// Tokens of the vocabulary: the length of a row of logits.
    fn vocab(&self) -> usize;

    /// Most tokens of a sequence, prompt and answer together.
    fn context(&self) -> usize;
}

impl StepModel for Engine {
    type Sequence = Sequence;

    fn new_sequence(&self) -> Sequence {
        Engine::new_sequence(self)
    }

    fn step(&mut self, chunks: &mut [Chunk<'_>]) -> Result<StepOutput<'_>, EngineError> {
        Engine::step(self, chunks)
    }

    fn sequence_bytes(&self, chunk: usize) -> BytesOf {
        Box::new(Engine::sequence_bytes(self, chunk))
    }

    fn vocab(&self) -> usize {
        Engine::vocab(self)
    }

    fn context(&self) -> usize {
        Engine::context(self)
    }
}
