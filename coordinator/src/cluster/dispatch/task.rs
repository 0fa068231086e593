//! A task: some tiles whose rows are wanted, and the attempts to get them.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_common::expert::ExpertBatch;
use ds4_common::tiles::{TileRect, TileSet};

use crate::cluster::combine::ReplyRows;
use crate::cluster::transport::{CallError, CallId, LiveNode, NodeId};

/// Shortest and longest pause before replicas are sought again for a task without any.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(250);

/// Position of a task in its sub-batch.
pub(super) type TaskId = usize;
/// Position of an attempt in its sub-batch.
pub(super) type AttemptId = usize;

/// Some tiles whose rows are wanted. The first attempt that delivers all of them ends the others.
#[derive(Debug)]
pub(super) struct TileTask {
    pub(super) tiles: Arc<TileSet>,
    /// Number of rows that a node returns for the tiles.
    pub(super) rows: usize,
    /// Size of the computation, see [`expert_block_ops`].
    pub(super) expert_block_ops: u64,
    /// The split attempt at another task that this task belongs to.
    pub(super) parent: Option<AttemptId>,
    pub(super) attempts: Vec<AttemptId>,
    /// Whether its rows are used only once two places have computed the same.
    pub(super) audited: bool,
    /// The attempts that delivered rows, while they are compared.
    pub(super) answers: Vec<AttemptId>,
    /// Nodes that failed since replicas were last sought among all nodes.
    pub(super) failed: Vec<NodeId>,
    /// The last failure.
    pub(super) failure: Option<TaskFailure>,
    /// Nodes that computed infinity or NaN, each with a checksum of its rows.
    pub(super) not_finite: Vec<(LiveNode, u64)>,
    /// Whether all failures were final since replicas were last sought among all nodes; `None`
    /// without a failure.
    all_final: Option<bool>,
    pub(super) state: TaskState,
    /// How long to wait next time there is no replica.
    pause: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskState {
    /// At least one attempt is under way, or is about to be made.
    Open,
    /// No replica accepts it. It is tried again at this time, or when the nodes change.
    Stranded(Instant),
    /// None of the tokens chose these experts, or the rows are no longer needed.
    Empty,
    /// This attempt has delivered the rows.
    Done(AttemptId),
}

/// What went wrong with a task at one node.
#[derive(Clone, Debug)]
pub(super) struct TaskFailure {
    pub(super) node: Arc<str>,
    pub(super) error: CallError,
}

/// One try at a task.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) task: TaskId,
    pub(super) execution: Execution,
    /// Whether it was made because another attempt is late.
    pub(super) hedge: bool,
    pub(super) open: bool,
}

/// How an attempt is carried out.
#[derive(Debug)]
pub(super) enum Execution {
    /// By a node.
    Call(OpenCall),
    /// By the local fallback, one rectangle after the other.
    Local {
        pending: Vec<TileRect>,
        done: Vec<(TileRect, Vec<f32>)>,
    },
    /// As other tasks on different replicas, of which `missing` are not done.
    Split {
        tasks: Range<TaskId>,
        missing: usize,
    },
}

/// A call to a node.
#[derive(Debug)]
pub(super) struct OpenCall {
    pub(super) node: LiveNode,
    pub(super) id: CallId,
    pub(super) sent: Instant,
    pub(super) timeout: CallTimeout,
    pub(super) rows: Option<ReplyRows>,
}

/// The next timeout of an unanswered call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallTimeout {
    /// The call is late at the first time, and its node unresponsive at the second.
    LateAt {
        late: Instant,
        unresponsive: Instant,
    },
    /// The call is late; its node is unresponsive at this time.
    UnresponsiveAt(Instant),
    /// Other replicas do the work; the reply is still accepted.
    Expired,
}

impl CallTimeout {
    pub(super) fn next(self) -> Option<Instant> {
        match self {
            CallTimeout::LateAt { late, .. } => Some(late),
            CallTimeout::UnresponsiveAt(unresponsive) => Some(unresponsive),
            CallTimeout::Expired => None,
        }
    }
}

impl TileTask {
    pub(super) fn new(
        tiles: Arc<TileSet>,
        rows: usize,
        expert_block_ops: u64,
        parent: Option<AttemptId>,
    ) -> Self {
        TileTask {
            tiles,
            rows,
            expert_block_ops,
            parent,
            attempts: Vec::new(),
            audited: false,
            answers: Vec::new(),
            failed: Vec::new(),
            failure: None,
            not_finite: Vec::new(),
            all_final: None,
            state: match rows {
                0 => TaskState::Empty,
                _ => TaskState::Open,
            },
            pause: FIRST_PAUSE,
        }
    }

    /// Whether nothing is left to be computed.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, TaskState::Done(_) | TaskState::Empty)
    }

    pub(super) fn failed_at(&mut self, node: &LiveNode, error: CallError) {
        if let CallError::NotFinite(bits) = error
            && self.not_finite.iter().all(|(known, _)| known.id != node.id)
        {
            self.not_finite.push((node.clone(), bits));
        }
        self.all_final = Some(self.all_final.unwrap_or(true) && error.is_final());
        self.failed.push(node.id);
        self.failure = Some(TaskFailure {
            node: Arc::clone(&node.name),
            error,
        });
    }

    /// The failure that ends the request if no replica is left: every node that was asked failed,
    /// and would fail in the same way again.
    pub(super) fn final_failure(&self) -> Option<&TaskFailure> {
        self.failure
            .as_ref()
            .filter(|_| self.all_final == Some(true))
    }

    /// Whether two nodes computed the same infinities and NaNs: neither is to blame for them.
    pub(super) fn agreed_not_finite(&self) -> bool {
        let mut known = self.not_finite.iter().map(|(_, bits)| *bits);
        let last = known.next_back();
        last.is_some_and(|last| known.any(|bits| bits == last))
    }

    /// Takes over the failures of `whole`, of which this task is a part.
    pub(super) fn inherit_failures(&mut self, whole: &TileTask) {
        self.failed.clone_from(&whole.failed);
        self.failure.clone_from(&whole.failure);
        self.audited = whole.audited;
        self.all_final = whole.all_final;
    }

    /// No replica accepts it at present.
    pub(super) fn strand(&mut self, now: Instant) {
        self.state = TaskState::Stranded(now + self.pause);
        self.pause = (self.pause * 2).min(LAST_PAUSE);
    }

    /// Makes it available again, also to the nodes that failed.
    pub(super) fn reopen(&mut self) {
        self.state = TaskState::Open;
        self.failed.clear();
        self.all_final = None;
    }
}

/// Size of a computation: the number of (token, chosen expert, block) triples in `rects` for the
/// tokens in `tokens`.
pub(super) fn expert_block_ops(
    batch: &ExpertBatch,
    tokens: Range<usize>,
    rects: &[TileRect],
) -> u64 {
    let routes = batch.routes_of_all(tokens);
    let of_rect = |rect: &TileRect| {
        let chosen = routes.iter().filter(|r| rect.experts.contains(r.expert));
        chosen.count() as u64 * u64::from(rect.blocks.len())
    };
    rects.iter().map(of_rect).sum()
}
