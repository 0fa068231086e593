//! Why the engine refuses a step or fails in one.

use ds4_common::gguf::FileChanged;
use ds4_common::kernels::ShapeError;
use ds4_common::model::ModelError;

use super::expert_backend::ExpertError;

/// Why a step or the construction of an engine failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A weight tensor does not have the shape of a matrix of its type.
    #[error("tensor {tensor}: {problem}")]
    Weight {
        /// Name of the tensor in the file.
        tensor: String,
        /// How the shape, the type and the bytes disagree.
        problem: ShapeError,
    },
    /// The model has more residual streams than the mixing state has room for.
    #[error("the model has {streams} hyper-connection streams; at most {limit} are supported")]
    Streams {
        /// Streams of the model.
        streams: usize,
        /// Most streams of any model that the engine runs.
        limit: usize,
    },
    /// A token id is not below the size of the vocabulary.
    #[error("token id {token} is outside the vocabulary of {vocab} tokens")]
    Token {
        /// The first such id of the chunk.
        token: u32,
        /// Tokens of the vocabulary.
        vocab: usize,
    },
    /// A chunk would make its sequence longer than the engine's context.
    #[error("{tokens} tokens after position {position} exceed the context of {context} tokens")]
    Context {
        /// Tokens of the sequence before the step.
        position: usize,
        /// Tokens of the chunk.
        tokens: usize,
        /// Most tokens of a sequence.
        context: usize,
    },
    /// The configured context is longer than the model's.
    #[error("a context of {wanted} tokens exceeds the model's limit of {limit} tokens")]
    ContextLimit {
        /// The configured context in tokens.
        wanted: usize,
        /// The model's context in tokens.
        limit: usize,
    },
    /// A chunk has no tokens.
    #[error("a chunk has no tokens")]
    EmptyChunk,
    /// An earlier step of the sequence failed or was cancelled, so that its layers stand at
    /// different positions.
    #[error("the sequence cannot continue: an earlier step of it failed or was cancelled")]
    BrokenSequence,
    /// The model's tensors could not be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The routed experts of a layer could not be computed.
    #[error(transparent)]
    Experts(#[from] ExpertError),
    /// A file of the model changed in place. Clients see this text, so it does not name the file;
    /// its source does.
    #[error("the model's file changed while it was in use")]
    ModelChanged(#[source] FileChanged),
    /// The pool of compute threads could not be started.
    #[error("failed to start the engine's threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}
