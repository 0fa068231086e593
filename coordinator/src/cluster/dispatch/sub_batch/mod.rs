//! A sub-batch: as many tokens of a layer as fit into one call, the tasks that their tiles are
//! divided into, and what happens when a replica fails.
//!
//! It advances by events: a reply (`replies`), the passage of time (`timeouts`), and requests to
//! compute locally. Each is told the time, may send or cancel calls, and returns without waiting
//! for anything.

mod audit;
mod blocker;
mod failover;
mod replies;
mod return_test;
mod sum;
mod timeouts;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_common::checksum::all_finite;
use ds4_common::expert::ExpertBatch;
use ds4_common::tiles::{Span, TileRect, TileSet};
use ds4_proto::wire::EncodedBatch;

use super::replica_selector::{DispatchPlan, Replica};
use super::task::{
    Attempt, AttemptId, CallTimeout, Execution, OpenCall, TaskId, TileTask, expert_block_ops,
};
use super::{Dispatcher, metrics};
use crate::cluster::combine::RowMap;
use crate::cluster::tile_assignment::list;
use crate::cluster::transport::{ExpertCall, LiveNode, Mailbox};
use crate::engine::ExpertError;

/// A node counts as unresponsive after this multiple of the time after which its reply is late,
/// and not before the floor. Without another node the local fallback then takes over.
const UNRESPONSIVE_FACTOR: u32 = 4;
const UNRESPONSIVE_FLOOR: Duration = Duration::from_millis(200);

/// What all sub-batches of one layer share.
#[derive(Debug)]
pub(super) struct LayerContext<'a> {
    pub(super) dispatcher: &'a Dispatcher,
    pub(super) batch: Arc<ExpertBatch>,
    /// Where the replies of all calls arrive.
    pub(super) mailbox: Mailbox,
    pub(super) deadline: Instant,
}

/// Some tokens of a layer on their way.
#[derive(Debug)]
pub(super) struct SubBatch {
    pub(super) tokens: Range<usize>,
    encoded: EncodedBatch,
    plan: Arc<DispatchPlan>,
    map: RowMap,
    /// First one for each share of the plan, in their order; then those that came from splits.
    tasks: Vec<TileTask>,
    attempts: Vec<Attempt>,
    /// Number of shares that are not done.
    missing: usize,
    /// Position in the layer, part of the tags of its calls.
    index: u64,
    /// The membership that it last saw.
    epoch: u64,
}

impl SubBatch {
    /// Starts every share of the plan on its replica.
    pub(super) fn start(
        context: &LayerContext<'_>,
        plan: &Arc<DispatchPlan>,
        tokens: Range<usize>,
        index: usize,
        now: Instant,
    ) -> Result<Self, ExpertError> {
        let batch = &context.batch;
        let map = plan.cover.row_map(batch, tokens.clone());
        let task = |((_, tiles), &rows): (&(Option<Replica>, Arc<TileSet>), &usize)| {
            let ops = expert_block_ops(batch, tokens.clone(), tiles.rects());
            TileTask::new(Arc::clone(tiles), rows, ops, None)
        };
        let tasks: Vec<TileTask> = plan.shares.iter().zip(&map.rows).map(task).collect();
        let mut sub_batch = SubBatch {
            encoded: EncodedBatch::new(batch, tokens.clone()),
            missing: tasks.iter().filter(|task| !task.is_done()).count(),
            tasks,
            attempts: Vec::new(),
            plan: Arc::clone(plan),
            map,
            tokens,
            index: index as u64,
            epoch: context.dispatcher.selector().epoch(),
        };
        let mut refused = Vec::new();
        for (id, (replica, _)) in plan.shares.iter().enumerate() {
            if sub_batch.tasks[id].is_done() {
                continue;
            }
            context.dispatcher.hedge_budget().earn();
            sub_batch.tasks[id].audited = context.dispatcher.draw_audit();
            if !sub_batch.try_replica(context, id, replica.as_ref(), false, now) {
                refused.push(id);
            }
        }
        // Failover begins after every other node has its call.
        for id in refused {
            sub_batch.fail_over(context, id, now)?;
        }
        Ok(sub_batch)
    }

    pub(super) fn is_done(&self) -> bool {
        self.missing == 0
    }

    /// Starts an attempt at a task on a replica. Returns whether it is under way.
    fn try_replica(
        &mut self,
        context: &LayerContext<'_>,
        id: TaskId,
        replica: Option<&Replica>,
        hedge: bool,
        now: Instant,
    ) -> bool {
        let execution = match replica {
            None => return false,
            Some(Replica::Local) => Execution::Local {
                pending: single_blocks(self.tasks[id].tiles.rects()),
                done: Vec::new(),
            },
            Some(Replica::Node(node)) => match self.send_call(context, id, node, now) {
                Some(call) => Execution::Call(call),
                None => return false,
            },
        };
        self.add_attempt(id, execution, hedge);
        true
    }

    fn add_attempt(&mut self, id: TaskId, execution: Execution, hedge: bool) -> AttemptId {
        let attempt = self.attempts.len();
        self.attempts.push(Attempt {
            task: id,
            execution,
            hedge,
            open: true,
        });
        self.tasks[id].attempts.push(attempt);
        attempt
    }

    fn send_call(
        &mut self,
        context: &LayerContext<'_>,
        id: TaskId,
        node: &LiveNode,
        now: Instant,
    ) -> Option<OpenCall> {
        let row_bytes = context.dispatcher.settings.shape.row_bytes();
        let task = &mut self.tasks[id];
        let sent = node.link.send(ExpertCall {
            encoded: self.encoded.clone(),
            tiles: Arc::clone(&task.tiles),
            reply_bytes: task.rows * row_bytes,
            deadline: context.deadline,
            // The attempt that the call is about to become.
            tag: self.index << 32 | self.attempts.len() as u64,
            reply_to: context.mailbox.clone(),
        });
        match sent {
            Ok(call) => {
                let mut selector = context.dispatcher.selector();
                let late = selector.late_after(node.id, task.expert_block_ops);
                selector.sent(node.id, task.expert_block_ops);
                Some(OpenCall {
                    node: node.clone(),
                    id: call,
                    sent: now,
                    timeout: call_timeout(late, now, context.deadline),
                    rows: None,
                })
            }
            Err(error) => {
                metrics::failover(Some(&error));
                task.failed_at(node, error);
                None
            }
        }
    }

    /// Whether a task is done, or an attempt at it is under way that may be expected to succeed.
    fn is_in_progress(&self, id: TaskId) -> bool {
        let hopeful = |attempt: &Attempt| match &attempt.execution {
            Execution::Call(call) => call.timeout != CallTimeout::Expired,
            Execution::Local { .. } | Execution::Split { .. } => true,
        };
        self.tasks[id].is_done() || self.open_attempts(id).any(hopeful)
    }

    fn open_attempts(&self, id: TaskId) -> impl Iterator<Item = &Attempt> {
        let attempts = self.tasks[id].attempts.iter();
        attempts.map(|&a| &self.attempts[a]).filter(|a| a.open)
    }

    /// Has the local fallback compute everything that is missing, whatever other attempts are under
    /// way.
    pub(super) fn compute_rest_locally(&mut self, context: &LayerContext<'_>, now: Instant) {
        for id in 0..self.tasks.len() {
            let covered = |a: &Attempt| !matches!(a.execution, Execution::Call(_));
            if !self.tasks[id].is_done() && !self.open_attempts(id).any(covered) {
                self.try_replica(context, id, Some(&Replica::Local), false, now);
            }
        }
    }

    /// Computes the next rectangle of the local fallback. Returns whether there was one.
    pub(super) fn compute_next_locally(
        &mut self,
        context: &LayerContext<'_>,
        now: Instant,
    ) -> Result<bool, ExpertError> {
        let next = self.attempts.iter().position(|attempt| {
            let Execution::Local { pending, .. } = &attempt.execution else {
                return false;
            };
            attempt.open && !pending.is_empty()
        });
        let (Some(attempt), Some(fallback)) = (next, &context.dispatcher.fallback) else {
            return Ok(false);
        };
        let Execution::Local { pending, done } = &mut self.attempts[attempt].execution else {
            return Ok(false);
        };
        let Some(rect) = pending.pop() else {
            return Ok(false);
        };
        let mut rows = Vec::new();
        fallback.compute(&context.batch, self.tokens.clone(), rect, &mut rows)?;
        if !all_finite(&rows) {
            return Err(ExpertError::NotFinite {
                layer: context.batch.layer,
                tiles: list(&[rect]),
                computed_by: "the coordinator's own file".to_owned(),
            });
        }
        done.push((rect, rows));
        if pending.is_empty() {
            self.delivered(context, attempt, now)?;
        }
        Ok(true)
    }
}

/// When an unanswered call is late, and when its node counts as unresponsive: early enough before
/// the deadline for another replica to do the work.
fn call_timeout(late: Duration, now: Instant, deadline: Instant) -> CallTimeout {
    let left = deadline.saturating_duration_since(now);
    let late = late.min(left / 4);
    let unresponsive = (late * UNRESPONSIVE_FACTOR)
        .max(UNRESPONSIVE_FLOOR)
        .min(left / 2);
    CallTimeout::LateAt {
        late: now + late,
        unresponsive: now + unresponsive,
    }
}

/// `rects` cut into single blocks: the unit that the local fallback computes before the caller is
/// asked again whether it still wants the rows.
fn single_blocks(rects: &[TileRect]) -> Vec<TileRect> {
    let blocks = |rect: &TileRect| {
        let rect = *rect;
        (rect.blocks.start..rect.blocks.end).map(move |block| TileRect {
            blocks: Span::new(block, block + 1),
            ..rect
        })
    };
    rects.iter().flat_map(blocks).collect()
}
