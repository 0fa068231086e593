use std::time::{Duration, Instant};

/// A part of the forward pass, for the account of where time goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Embedding,
    HyperConnections,
    Attention,
    Router,
    SharedExpert,
    /// Waiting for, or computing, what the expert backend had not finished in the shadow of the
    /// shared expert.
    RoutedExperts,
    Head,
}

impl Stage {
    pub const ALL: [Stage; 7] = [
        Stage::Embedding,
        Stage::HyperConnections,
        Stage::Attention,
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
            Stage::Attention => "attention",
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
