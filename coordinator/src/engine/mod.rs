//! The forward pass: chunks of tokens in, logits out. Synchronous; no sockets, no runtime.
//!
//! A step takes chunks of several sequences: prefill and decode mix, and each weight is read once
//! for all rows. A row's result depends on its own sequence alone, to the bit.
//!
//! `dense` is the door to the matrices that the coordinator multiplies itself, `expert_backend` the
//! door to the routed experts.

mod attention;
mod batch;
mod dense;
mod error;
mod expert_backend;
mod forward;
mod hyper_connection;
mod kv_cache;
mod moe;
mod numerics;
mod observer;
mod operand;
mod rope;
mod stage;
mod stage_work;
mod step;
mod weights;

use std::sync::Arc;

use ds4_common::gguf::FileWatch;
use ds4_common::kernels::Kernels;
use ds4_common::model::{HyperParams, ModelTensors};
use ds4_common::threads::Threads;

pub use error::EngineError;
pub use expert_backend::{ExpertBackend, ExpertError, PendingExperts};
pub use kv_cache::{RewindError, Sequence};
pub use numerics::Numerics;
pub use observer::{Observation, Observer, Point};
pub use stage::{Stage, StageTimes};
pub use stage_work::StageWork;
pub use step::{Chunk, ChunkOutput, LogitsWanted, StepOutput};

use batch::Ropes;
use dense::DenseOps;
use forward::{Forward, StepScratch};
use kv_cache::{BlockMeter, CacheLayout};
use rope::Rope;
use weights::EngineWeights;

/// How an engine computes.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// The instruction set that multiplies.
    pub kernels: Kernels,
    /// The roundings between the products.
    pub numerics: Numerics,
    /// Compute threads; 0 means one per core.
    pub threads: usize,
    /// Whether each compute thread is pinned to a core of its own.
    pub pin: bool,
    /// Longest sequence in tokens; 0 means the model's own limit.
    pub context: usize,
    /// Tokens by which every sequence can be rewound; 0 keeps no memory for it.
    pub rewind: usize,
}

/// Tokens by which the sequences of an engine can be rewound where something rewinds them.
pub const DEFAULT_REWIND: usize = 64;

impl EngineConfig {
    /// Longest sequence in tokens of an engine for this model.
    ///
    /// # Errors
    /// `context` exceeds the model's limit.
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

/// A loaded model with its threads and buffers.
pub struct Engine {
    hp: HyperParams,
    weights: EngineWeights,
    ropes: Ropes,
    dense: DenseOps,
    context: usize,
    cache: CacheLayout,
    cache_bytes: BlockMeter,
    experts: Arc<dyn ExpertBackend>,
    pool: rayon::ThreadPool,
    scratch: StepScratch,
    outputs: Vec<ChunkOutput>,
    times: StageTimes,
    /// The files of the weights, if their changes are to be noticed.
    files: Option<Arc<FileWatch>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("dense", &self.dense)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine for the model whose tensors are given, without any sequence. Routed experts are
    /// left to `experts`.
    ///
    /// # Errors
    /// A tensor does not fit its use, the context exceeds the model's, or threads could not be
    /// started.
    pub fn new(
        hp: HyperParams,
        tensors: &ModelTensors,
        experts: Arc<dyn ExpertBackend>,
        config: &EngineConfig,
    ) -> Result<Self, EngineError> {
        let weights = EngineWeights::new(&hp, tensors)?;
        let pool = Threads::new(config.threads, config.pin)
            .pool()
            .thread_name(|i| format!("engine-{i}"))
            .build()?;
        let context = config.context_of(&hp)?;
        Ok(Engine {
            ropes: Ropes {
                plain: Rope::window_only(&hp),
                compressing: Rope::compressing(&hp),
            },
            dense: DenseOps {
                kernels: config.kernels,
                numerics: config.numerics,
            },
            cache: CacheLayout::new(&hp, config.numerics, config.rewind),
            cache_bytes: BlockMeter::default(),
            hp,
            weights,
            context,
            experts,
            pool,
            scratch: StepScratch::default(),
            outputs: Vec::new(),
            times: StageTimes::default(),
            files: None,
        })
    }

    /// Lets each step fail whose weights changed while it ran: nothing that was computed from them
    /// is returned.
    pub fn watch(&mut self, files: Arc<FileWatch>) {
        self.files = Some(files);
    }

    /// Tokens of the vocabulary: the length of a row of logits.
    #[must_use]
    pub fn vocab(&self) -> usize {
        self.hp.vocab
    }

    /// Longest sequence in tokens.
    #[must_use]
    pub fn context(&self) -> usize {
        self.context
    }

    /// An empty sequence, to be passed to this engine's steps only.
    #[must_use]
    pub fn new_sequence(&self) -> Sequence {
        Sequence::new(&self.cache, &self.cache_bytes)
    }

    /// The most bytes that a sequence holds, as a function of the most tokens that it had, if no
    /// step appends more than `chunk` of them. Exact but for parts of blocks.
    pub fn sequence_bytes(&self, chunk: usize) -> impl Fn(usize) -> u64 + Send + Sync + 'static {
        let cache = self.cache.clone();
        move |tokens| cache.most_bytes(tokens, chunk)
    }

    /// Bytes of the blocks of all sequences of this engine, wherever they are: what several share
    /// counts once.
    #[must_use]
    pub fn kv_bytes(&self) -> u64 {
        self.cache_bytes.bytes()
    }

    /// Time spent in each stage since the engine was built.
    #[must_use]
    pub fn times(&self) -> &StageTimes {
        &self.times
    }

    /// The mapped weights of a stage, without the routed experts and without the indexer's, which
    /// only long sequences read. The head's are multiplied only for rows that want logits.
    #[must_use]
    pub fn work(&self, stage: Stage) -> StageWork {
        self.weights.work(stage)
    }

    /// The mapped weights that every step reads, without the routed experts: one slice per matrix.
    #[must_use]
    pub fn dense_bytes(&self) -> Vec<&[u8]> {
        self.weights.dense_bytes()
    }

    /// Runs `probe` on the engine's threads.
    pub fn on_threads<R: Send>(&self, probe: impl FnOnce() -> R + Send) -> R {
        self.pool.install(probe)
    }

    /// Appends every chunk's tokens to its sequence and computes the wanted logits.
    ///
    /// # Errors
    /// A chunk is refused before any work if it is empty, has a token outside the vocabulary,
    /// exceeds the context, or its sequence is broken; no sequence has changed then. If the experts
    /// of a layer cannot be computed, or the model's file changed, all sequences of the step are
    /// broken: [`Sequence::rewind`] to where they were mends those whose chunk had no more tokens
    /// than [`EngineConfig::rewind`], and a [`Sequence::fork`] from before the step replaces others.
    pub fn step(&mut self, chunks: &mut [Chunk<'_>]) -> Result<StepOutput<'_>, EngineError> {
        self.step_seen(chunks, None)
    }

    /// As [`Self::step`], and shows `observer` what is computed on the way.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn step_observed(
        &mut self,
        chunks: &mut [Chunk<'_>],
        observer: &mut dyn Observer,
    ) -> Result<StepOutput<'_>, EngineError> {
        self.step_seen(chunks, Some(observer))
    }

    fn step_seen(
        &mut self,
        chunks: &mut [Chunk<'_>],
        observer: Option<&mut dyn Observer>,
    ) -> Result<StepOutput<'_>, EngineError> {
        for chunk in chunks.iter() {
            self.check(chunk)?;
        }
        self.outputs.clear();
        self.outputs.resize(chunks.len(), ChunkOutput::default());
        let mut forward = Forward {
            hp: &self.hp,
            weights: &self.weights,
            ropes: &self.ropes,
            dense: self.dense,
            experts: &*self.experts,
            scratch: &mut self.scratch,
            times: &mut self.times,
            observer: match observer {
                Some(observer) => Some(&mut *observer),
                None => None,
            },
        };
        let outputs = &mut self.outputs;
        self.pool.install(|| forward.run(chunks, outputs))?;
        if let Some(Err(changed)) = self.files.as_ref().map(|files| files.check()) {
            for chunk in chunks.iter_mut().filter(|chunk| !chunk.sequence.broken) {
                // What its tokens left behind was computed from other weights.
                chunk.sequence.position -= chunk.tokens.len();
                chunk.sequence.broken = true;
            }
            return Err(EngineError::ModelChanged(changed));
        }
        Ok(StepOutput::new(&self.scratch.logits, &self.outputs))
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

#[cfg(test)]
mod tests;
