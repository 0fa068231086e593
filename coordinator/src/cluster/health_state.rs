//! How far the dispatcher relies on a node, as dispatch decides it and metrics show it.

/// How far a node is relied on, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HealthState {
    /// Its replies are not late.
    Healthy,
    /// It was late, or is far slower than others: used only for tiles without a healthy replica.
    Slow,
    /// It has not replied for so long that it may never reply, or it failed a call for good: used
    /// after everything else, the local fallback included.
    Unresponsive,
    /// It computed wrong numbers: not used until it has shown that they are right again.
    Quarantined,
}

impl HealthState {
    /// All of them, from best to worst.
    pub(super) const ALL: [HealthState; 4] = [
        HealthState::Healthy,
        HealthState::Slow,
        HealthState::Unresponsive,
        HealthState::Quarantined,
    ];

    /// The value of a metric's label.
    pub(super) fn label(self) -> &'static str {
        match self {
            HealthState::Healthy => "healthy",
            HealthState::Slow => "slow",
            HealthState::Unresponsive => "unresponsive",
            HealthState::Quarantined => "quarantined",
        }
    }
}
