use std::time::{Duration, Instant};

/// A part of the forward pass, for the account of where time goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Embedding,
    HyperConnections,
    /// Every projection of a layer's normed input: queries, keys, compressors, index weights.
    AttentionInput,
    /// Queries of attention and of the indexer out of their latent, and the keys of new rows.
    Queries,
    Compressor,
    /// Scores of compressed rows and the choice among them.
    Indexer,
    /// Scores, softmax and values of every head.
    Attention,
    AttentionOutput,
    Router,
    SharedExpert,
    /// Waiting for, or computing, what the expert backend had not finished in the shadow of the
    /// shared expert.
    RoutedExperts,
    Head,
}

impl Stage {
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

/// Wall time of every stage.
#[derive(Clone, Debug, Default)]
pub struct StageTimes {
    spent: [Duration; Stage::ALL.len()],
}

impl StageTimes {
    #[must_use]
    pub fn of(&self, stage: Stage) -> Duration {
        self.spent[stage as usize]
    }

    #[must_use]
    pub fn total(&self) -> Duration {
        self.spent.iter().sum()
    }

    /// Time since `mark` goes to `stage`; `mark` moves to now.
    pub(crate) fn lap(&mut self, stage: Stage, mark: &mut Instant) {
        let now = Instant::now();
        self.spent[stage as usize] += now - *mark;
        *mark = now;
    }
}
