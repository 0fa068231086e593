//! What the streams and services of a node share.

use std::sync::Arc;

use ds4_proto::wire::InstanceId;
use tokio::sync::{Semaphore, watch};

use crate::compute::{Identity, OutOfService};
use crate::memory::CallMemory;
use crate::stats::Stats;
use crate::worker::WorkQueue;

/// Coordinators that a node serves at once.
pub(crate) const MAX_SESSIONS: u32 = 64;

/// Where a node is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Takes new work.
    Serving,
    /// Takes no new work until its weights are right again.
    OutOfService(OutOfService),
    /// Takes no new work; what was accepted is finished.
    Draining,
    /// Streams end at once.
    Stopping,
}

impl Phase {
    /// Why new work is refused; `None` while it is not.
    pub(crate) fn refusal(&self) -> Option<String> {
        match self {
            Phase::Serving => None,
            Phase::OutOfService(fault) => Some(fault.to_string()),
            Phase::Draining | Phase::Stopping => Some("this node is shutting down".to_owned()),
        }
    }
}

/// What the streams of a node share.
#[derive(Debug)]
pub(crate) struct NodeState {
    pub(crate) identity: Arc<Identity>,
    /// Tells this process from all others.
    pub(crate) instance: InstanceId,
    /// Compute threads.
    pub(crate) threads: usize,
    /// Calls in flight on one stream.
    pub(crate) max_in_flight: usize,
    pub(crate) queue: WorkQueue,
    pub(crate) memory: CallMemory,
    pub(crate) stats: Arc<Stats>,
    pub(crate) phase: watch::Receiver<Phase>,
    /// One permit of [`MAX_SESSIONS`] for each stream.
    pub(crate) sessions: Arc<Semaphore>,
    /// The one permit to measure this machine or its link.
    pub(crate) probe: Arc<Semaphore>,
}
