//! What goes into a step and what comes out: chunks of several sequences, and logits.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::kv_cache::Sequence;

/// The rows of a chunk whose logits the caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsWanted {
    /// None of them: the middle of a prompt.
    None,
    /// The last token's row, from which the next token is sampled.
    Last,
    /// The rows of all tokens, in their order.
    All,
}

/// Consecutive tokens of one sequence, to be appended to it in a step.
///
/// The engine's sequences are [`Sequence`]; a stand-in for the engine may have its own type.
#[derive(Debug)]
pub struct Chunk<'a, S = Sequence> {
    /// The sequence that the tokens continue; a step takes at most one chunk of it.
    pub sequence: &'a mut S,
    /// Token ids, each below the size of the vocabulary; never empty.
    pub tokens: &'a [u32],
    /// The rows whose logits [`StepOutput::logits`] returns.
    pub logits: LogitsWanted,
    /// Checked before every layer: once true, the chunk's rows leave the step and its sequence is
    /// broken. `None` for a chunk that is never cancelled.
    pub cancelled: Option<&'a AtomicBool>,
}

impl<S> Chunk<'_, S> {
    /// Whether the caller has given the chunk up.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled
            .is_some_and(|flag| flag.load(Ordering::Relaxed))
    }
}

/// What a step computed, valid until the next step.
#[derive(Clone, Copy, Debug)]
pub struct StepOutput<'a> {
    logits: &'a [f32],
    chunks: &'a [ChunkOutput],
}

/// What a step computed for one of its chunks.
#[derive(Clone, Debug, Default)]
pub struct ChunkOutput {
    /// Where the chunk's logits lie in the step's buffer, in elements: a multiple of the
    /// vocabulary, empty if none were wanted or the chunk was cancelled.
    pub logits: Range<usize>,
    /// Whether the chunk was cancelled during the step.
    pub cancelled: bool,
}

impl<'a> StepOutput<'a> {
    /// The output of a step whose chunks have their rows in `logits`, each row as long as the
    /// vocabulary.
    #[must_use]
    pub fn new(logits: &'a [f32], chunks: &'a [ChunkOutput]) -> Self {
        StepOutput { logits, chunks }
    }

    /// The wanted rows of chunk `index` of the step, `(rows x vocab)`; empty if none were wanted or
    /// the chunk was cancelled.
    #[must_use]
    pub fn logits(&self, index: usize) -> &'a [f32] {
        &self.logits[self.chunks[index].logits.clone()]
    }

    /// Whether chunk `index` was cancelled during the step; its sequence is broken then.
    #[must_use]
    pub fn cancelled(&self, index: usize) -> bool {
        self.chunks[index].cancelled
    }
}
