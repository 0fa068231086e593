//! What may go wrong with a node, and how often.

use std::sync::Arc;
use std::time::Duration;

use ds4_common::tiles::Holdings;

/// How often troubles happen, and which nodes they may befall.
#[derive(Debug)]
pub(super) struct Faults {
    /// Longest time between two troubles; `None` means no more of them.
    pub(super) pause: Option<Duration>,
    /// Whether the nodes that are well hold all tiles at any time.
    pub(super) gentle: bool,
    /// Whether nodes may compute wrong numbers: every call is audited, and the own file decides.
    pub(super) wrong_numbers: bool,
    /// What a node may hold after a restart instead of the same tiles.
    pub(super) others: Vec<Arc<Holdings>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Its process dies, and its connections are reset.
    Kill,
    /// Its machine is gone, and its connections stay silent.
    PowerOff,
    /// Its process is stopped; connections stay silent.
    Stop,
    /// The network to one coordinator loses everything.
    Cut,
    /// It computes many times slower.
    Slow,
    /// It breaks the protocol or refuses calls.
    Misbehave,
    /// It drains: finishes accepted calls, refuses others, and restarts later.
    Drain,
    /// As `Drain`, and it is not named until it restarts.
    Leave,
}

impl Trouble {
    pub(super) const KINDS: usize = 8;
    pub(super) const ALL: [Trouble; Self::KINDS] = [
        Trouble::Kill,
        Trouble::PowerOff,
        Trouble::Stop,
        Trouble::Cut,
        Trouble::Slow,
        Trouble::Misbehave,
        Trouble::Drain,
        Trouble::Leave,
    ];
}
