use ds4_common::kernels::ShapeError;
use ds4_common::model::ModelError;

use super::ExpertError;

/// Why a step or the construction of an engine failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("tensor {tensor}: {problem}")]
    Weight { tensor: String, problem: ShapeError },
    #[error("tensor {tensor}: {reason}")]
    Values { tensor: String, reason: String },
    #[error("{streams} hyper-connection streams are more than the {limit} that fit")]
    Streams { streams: usize, limit: usize },
    #[error("token {token} is outside of the vocabulary of {vocab}")]
    Token { token: u32, vocab: usize },
    #[error("{tokens} tokens after position {position} exceed the context of {context}")]
    Context {
        position: usize,
        tokens: usize,
        context: usize,
    },
    #[error("a context of {wanted} tokens exceeds the model's limit of {limit}")]
    ContextLimit { wanted: usize, limit: usize },
    #[error("a chunk without tokens")]
    EmptyChunk,
    #[error("the sequence was left unfinished by an earlier failed or cancelled step")]
    BrokenSequence,
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Experts(#[from] ExpertError),
    #[error("the engine's threads could not be started: {0}")]
    Threads(String),
}
