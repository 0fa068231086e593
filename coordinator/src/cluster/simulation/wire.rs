//! The connection of one coordinator to one node: the real bookkeeping of a link, over a connection
//! that keeps order like TCP and that may be cut without notice.

use std::sync::Arc;
use std::time::Duration;

use ds4_proto::pb::{self, compute_reply};
use tokio::sync::mpsc;

use super::node::{SimJob, Unanswered};
use crate::cluster::link::calls::ConnectionCalls;
use crate::cluster::membership::EntryId;

pub(super) const FIRST_BACKOFF: Duration = Duration::from_millis(50);
pub(super) const LAST_BACKOFF: Duration = Duration::from_secs(1);

/// A message under way, or held back by a cut or a stopped node.
#[derive(Debug)]
pub(super) enum Parcel {
    ToNode(pb::compute_request::Kind),
    Computed(SimJob),
    ToCoordinator(Option<compute_reply::Kind>),
}

/// A connection that is up.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) calls: Arc<ConnectionCalls>,
    /// The node's process at its other end.
    pub(super) process: u64,
    pub(super) outbound: mpsc::Receiver<pb::ComputeRequest>,
    /// When the last message of each direction arrives.
    pub(super) last_out: Duration,
    pub(super) last_in: Duration,
    pub(super) unanswered: Unanswered,
}

#[derive(Debug)]
pub(super) struct Wire {
    pub(super) coordinator: usize,
    pub(super) node: usize,
    /// The node's entry in the coordinator's table, while the node is named.
    pub(super) entry: Option<EntryId>,
    pub(super) up: Option<Up>,
    /// Counts connections: messages of earlier ones are void.
    pub(super) generation: u64,
    pub(super) backoff: Duration,
    pub(super) cut: bool,
    pub(super) held_back: Vec<(u64, Parcel)>,
}

impl Wire {
    pub(super) fn new(coordinator: usize, node: usize) -> Self {
        Wire {
            coordinator,
            node,
            entry: None,
            up: None,
            generation: 0,
            backoff: FIRST_BACKOFF,
            cut: false,
            held_back: Vec::new(),
        }
    }
}
