//! The forward pass: chunks of tokens in, logits out. Synchronous; no sockets, no runtime.
//!
//! A step takes chunks of several sequences: prefill and decode mix, and each weight is read once
//! for all rows. What a row computes depends on its own sequence alone, to the bit.

mod attention;
mod backend;
mod batch;
mod compute;
mod error;
mod forward;
mod hyper_connection;
mod kv_cache;
mod moe;
mod numerics;
mod operand;
mod rope;
mod stage;
mod weights;
mod work;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ds4_common::kernels::Kernels;
use ds4_common::model::{HyperParams, ModelTensors};
use ds4_common::threads::Threads;

pub use backend::{ExpertBackend, ExpertError, PendingExperts};
pub use error::EngineError;
pub use kv_cache::Sequence;
pub use numerics::Numerics;
pub use stage::{Stage, StageTimes};
pub use work::StageWork;

use batch::Ropes;
use compute::Compute;
use forward::{Forward, Scratch};
use rope::Rope;
use weights::Weights;

/// How an engine computes.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    pub kernels: Kernels,
    pub numerics: Numerics,
    /// Compute threads; 0 takes one for each core.
    pub threads: usize,
    /// Whether each compute thread stays on a core of its own.
    pub pin: bool,
    /// Longest sequence in tokens; 0 takes the model's own limit.
    pub context: usize,
}

impl EngineConfig {
    /// Longest sequence in tokens of an engine for this model.
    ///
    /// # Errors
    /// More is asked for than positions mean something to the model.
    pub fn context_of(&self, hp: &HyperParams) -> Result<usize, EngineError> {
        match self.context {
            0 => Ok(hp.context),
            wanted if wanted <= hp.context => Ok(wanted),
            wanted => Err(EngineError::ContextLimit {
                wanted,
                limit: hp.context,
            }),
        }
    }
}

/// Which rows of a chunk the caller wants logits of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsWanted {
    None,
    Last,
    All,
}

/// Consecutive tokens of one sequence.
#[derive(Debug)]
pub struct Chunk<'a> {
    pub sequence: &'a mut Sequence,
    pub tokens: &'a [u32],
    pub logits: LogitsWanted,
    /// Looked at before every layer: once true, the chunk's rows leave the batch.
    pub cancelled: Option<&'a AtomicBool>,
}

/// Logits of one step, valid until the next.
#[derive(Debug)]
pub struct StepOutput<'a> {
    logits: &'a [f32],
    chunks: &'a [ChunkOutput],
}

#[derive(Clone, Debug, Default)]
struct ChunkOutput {
    /// Elements of the logits buffer.
    logits: Range<usize>,
    cancelled: bool,
}

impl StepOutput<'_> {
    /// The wanted rows of chunk `index`, `rows x vocab`; empty if it was cancelled.
    #[must_use]
    pub fn logits(&self, index: usize) -> &[f32] {
        &self.logits[self.chunks[index].logits.clone()]
    }

    /// Whether chunk `index` was cancelled on the way; its sequence is broken then.
    #[must_use]
    pub fn cancelled(&self, index: usize) -> bool {
        self.chunks[index].cancelled
    }
}

/// A loaded model with its threads and buffers.
pub struct Engine {
    hp: HyperParams,
    weights: Weights,
    ropes: Ropes,
    compute: Compute,
    context: usize,
    experts: Arc<dyn ExpertBackend>,
    pool: rayon::ThreadPool,
    scratch: Scratch,
    outputs: Vec<ChunkOutput>,
    times: StageTimes,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("compute", &self.compute)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// # Errors
    /// A tensor does not fit its use, the context exceeds the model's, or threads could not be
    /// started.
    pub fn new(
        hp: HyperParams,
        tensors: &ModelTensors,
        experts: Arc<dyn ExpertBackend>,
        config: &EngineConfig,
    ) -> Result<Self, EngineError> {
        let weights = Weights::new(&hp, tensors)?;
        let pool = Threads::new(config.threads, config.pin)
            .pool()
            .thread_name(|i| format!("engine-{i}"))
            .build()
            .map_err(|e| EngineError::Threads(e.to_string()))?;
        let context = config.context_of(&hp)?;
        Ok(Engine {
            ropes: Ropes {
                plain: Rope::window_only(&hp),
                compressing: Rope::compressing(&hp),
            },
            compute: Compute {
                kernels: config.kernels,
                numerics: config.numerics,
            },
            hp,
            weights,
            context,
            experts,
            pool,
            scratch: Scratch::default(),
            outputs: Vec::new(),
            times: StageTimes::default(),
        })
    }

    #[must_use]
    pub fn vocab(&self) -> usize {
        self.hp.vocab
    }

    /// Longest sequence in tokens.
    #[must_use]
    pub fn context(&self) -> usize {
        self.context
    }

    #[must_use]
    pub fn new_sequence(&self) -> Sequence {
        Sequence::new(&self.hp, self.compute.numerics)
    }

    /// Bytes that a sequence takes at most, by its tokens, if no step adds more than `chunk` of
    /// them to it.
    pub fn sequence_bytes(&self, chunk: usize) -> impl Fn(usize) -> u64 + Send + Sync + 'static {
        let (hp, numerics) = (self.hp.clone(), self.compute.numerics);
        move |tokens| Sequence::most_bytes(&hp, numerics, tokens, chunk)
    }

    /// Time spent in each stage since the engine was made.
    #[must_use]
    pub fn times(&self) -> &StageTimes {
        &self.times
    }

    /// Advances every chunk's sequence by its tokens.
    ///
    /// # Errors
    /// A chunk is refused before any work if it is empty, names a token outside of the vocabulary,
    /// exceeds the context, or its sequence is broken; nothing has changed then. If experts can't
    /// be computed, all sequences of the step are broken.
    pub fn step(&mut self, chunks: &mut [Chunk<'_>]) -> Result<StepOutput<'_>, EngineError> {
        for chunk in chunks.iter() {
            self.check(chunk)?;
        }
        self.outputs.clear();
        self.outputs.resize(chunks.len(), ChunkOutput::default());
        let mut forward = Forward {
            hp: &self.hp,
            weights: &self.weights,
            ropes: &self.ropes,
            compute: self.compute,
            experts: &*self.experts,
            scratch: &mut self.scratch,
            times: &mut self.times,
        };
        let outputs = &mut self.outputs;
        self.pool.install(|| forward.run(chunks, outputs))?;
        Ok(StepOutput {
            logits: &self.scratch.logits,
            chunks: &self.outputs,
        })
    }

    fn check(&self, chunk: &Chunk<'_>) -> Result<(), EngineError> {
        if chunk.tokens.is_empty() {
            return Err(EngineError::EmptyChunk);
        }
        if chunk.sequence.broken {
            return Err(EngineError::BrokenSequence);
        }
        if let Some(&token) = chunk.tokens.iter().find(|&&t| t as usize >= self.hp.vocab) {
            return Err(EngineError::Token {
                token,
                vocab: self.hp.vocab,
            });
        }
        if chunk.sequence.position + chunk.tokens.len() > self.context {
            return Err(EngineError::Context {
                position: chunk.sequence.position,
                tokens: chunk.tokens.len(),
                context: self.context,
            });
        }
        Ok(())
    }
}
