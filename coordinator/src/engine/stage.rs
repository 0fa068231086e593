//! The stages of the forward pass and the time spent in each.

use std::time::{Duration, Instant};

/// A stage of the forward pass, by which its time is accounted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Token ids to the rows of all streams.
    Embedding,
    /// Mixing the streams into a sublayer's input and its output back into them.
    HyperConnections,
    /// Every projection of a layer's normed input: queries, keys, compressors, index weights.
    AttentionInput,
    /// Queries of attention and of the indexer from their latent, and the keys of new rows.
    Queries,
    /// Pooling rows into the compressed rows whose windows close.
    Compressor,
    /// Scores of compressed rows and the choice among them.
    Indexer,
    /// Scores, softmax and values of every head.
    Attention,
    /// The heads' outputs through the low-rank output projection.
    AttentionOutput,
    /// Router logits, the choice of experts, and the batch for the expert backend.
    Router,
    /// The expert that every token passes.
    SharedExpert,
    /// Handing the batch to the expert backend, and waiting for what it had not finished when the
    /// shared expert was done.
    RoutedExperts,
    /// Logits of the wanted rows.
    Head,
}

impl Stage {
    /// All stages in the order of the forward pass; a stage's index is its place in it.
    pub const ALL: [Stage; 12] = [
        Stage::Embedding,
        Stage::HyperConnections,
        Stage::AttentionInput,
        Stage::Queries,
        Stage::Compressor,
        Stage::Indexer,
        Stage::Attention,
        Stage::AttentionOutput,
        Stage::Router,
        Stage::SharedExpert,
        Stage::RoutedExperts,
        Stage::Head,
    ];

    /// The name in tables of times.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Stage::Embedding => "embedding",
            Stage::HyperConnections => "hyper-connections",
            Stage::AttentionInput => "attention input",
            Stage::Queries => "queries and keys",
            Stage::Compressor => "compressor",
            Stage::Indexer => "indexer",
            Stage::Attention => "attention",
            Stage::AttentionOutput => "attention output",
            Stage::Router => "router",
            Stage::SharedExpert => "shared expert",
            Stage::RoutedExperts => "routed experts",
            Stage::Head => "head",
        }
    }
}

/// Wall-clock time spent in every stage.
#[derive(Clone, Debug, Default)]
pub struct StageTimes {
    spent: [Duration; Stage::ALL.len()],
}

impl StageTimes {
    /// Time spent in one stage.
    #[must_use]
    pub fn of(&self, stage: Stage) -> Duration {
        self.spent[stage as usize]
    }

    /// Time spent in all stages together.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.spent.iter().sum()
    }

    /// Adds the time since `mark` to `stage`, and moves `mark` to the present.
    pub(crate) fn lap(&mut self, stage: Stage, mark: &mut Instant) {
        let now = Instant::now();
        self.spent[stage as usize] += now - *mark;
        *mark = now;
    }
}
