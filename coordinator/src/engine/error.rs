use ds4_common::kernels::ShapeError;

use super::ExpertError;

/// Why a step or the construction of an engine failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("tensor {tensor}: {source}")]
    Weight { tensor: String, source: ShapeError },
    #[error("tensor {tensor}: {reason}")]
    Values { tensor: String, reason: String },
    #[error("token {token} is outside of the vocabulary of {vocab}")]
    Token { token: u32, vocab: usize },
    #[error("{tokens} tokens after position {position} exceed the context of {context}")]
    Context { position: usize, tokens: usize, context: usize },
    #[error("a chunk without tokens")]
    EmptyChunk,
    #[error("the sequence was left unfinished by an earlier failed or cancelled step")]
    BrokenSequence,
    #[error(transparent)]
    Experts(#[from] ExpertError),
    #[error("the engine's threads could not be started: {0}")]
    Threads(String),
}
