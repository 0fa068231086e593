//! Where a task goes when the assigned replica does not deliver.

use std::sync::Arc;
use std::time::Instant;

use ds4_common::tiles::{TileRect, TileSet};

use super::{LayerContext, SubBatch};
use crate::cluster::dispatch::metrics;
use crate::cluster::dispatch::replica_selector::{Reach, Replica};
use crate::cluster::dispatch::task::{Execution, TaskFailure, TaskId, TileTask, expert_block_ops};
use crate::cluster::tile_assignment::list;
use crate::cluster::transport::{CallError, NodeId};
use crate::engine::ExpertError;

impl SubBatch {
    /// Nodes that are no choice for a task: they have it already, or failed it.
    pub(super) fn excluded_nodes(&self, id: TaskId) -> Vec<NodeId> {
        let answers = self.tasks[id].answers.iter().map(|a| &self.attempts[*a]);
        let busy = answers.chain(self.open_attempts(id));
        let busy = busy.filter_map(|attempt| match &attempt.execution {
            Execution::Call(call) => Some(call.node.id),
            Execution::Local { .. } | Execution::Split { .. } => None,
        });
        self.tasks[id].failed.iter().copied().chain(busy).collect()
    }

    /// The other replicas of a task's tiles.
    pub(super) fn other_replicas(
        &self,
        context: &LayerContext<'_>,
        id: TaskId,
        reach: Reach,
    ) -> Vec<(Option<Replica>, Vec<TileRect>)> {
        context.dispatcher.selector().replicas_of(
            context.batch.layer,
            self.tasks[id].tiles.rects(),
            &self.excluded_nodes(id),
            self.plan.most_subtrees,
            reach,
        )
    }

    /// Starts a task on another replica, or on several, or leaves it stranded until there is one.
    pub(super) fn fail_over(
        &mut self,
        context: &LayerContext<'_>,
        id: TaskId,
        now: Instant,
    ) -> Result<(), ExpertError> {
        if !self.tasks[id].answers.is_empty() {
            return self.advance_audit(context, id, now);
        }
        loop {
            let others = self.other_replicas(context, id, Reach::AllReplicas);
            match &others[..] {
                [(None, _)] | [] => return self.strand(context, id, now),
                // A node that refuses is excluded from then on, so the loop ends.
                [(replica, rects)] if rects == self.tasks[id].tiles.rects() => {
                    if self.try_replica(context, id, replica.as_ref(), false, now) {
                        return Ok(());
                    }
                }
                _ => return self.split(context, id, others, false, now),
            }
        }
    }

    /// Divides a task among several replicas.
    pub(super) fn split(
        &mut self,
        context: &LayerContext<'_>,
        id: TaskId,
        shares: Vec<(Option<Replica>, Vec<TileRect>)>,
        hedge: bool,
        now: Instant,
    ) -> Result<(), ExpertError> {
        let grid = context.dispatcher.settings.shape.grid;
        let first = self.tasks.len();
        let parent = self.attempts.len();
        let mut replicas = Vec::with_capacity(shares.len());
        for (replica, rects) in shares {
            let rows = context.batch.reply_rows(self.tokens.clone(), &rects);
            let ops = expert_block_ops(&context.batch, self.tokens.clone(), &rects);
            // Parts of a set are a set; only their number can be wrong.
            let tiles = TileSet::new(grid, rects)?;
            let mut part = TileTask::new(Arc::new(tiles), rows, ops, Some(parent));
            part.inherit_failures(&self.tasks[id]);
            self.tasks.push(part);
            replicas.push(replica);
        }
        let tasks = first..self.tasks.len();
        let missing = self.tasks[tasks.clone()]
            .iter()
            .filter(|task| !task.is_done())
            .count();
        let execution = Execution::Split {
            tasks: tasks.clone(),
            missing,
        };
        self.add_attempt(id, execution, hedge);
        if missing == 0 {
            self.complete(context, parent);
        }
        for (child, replica) in tasks.zip(&replicas) {
            if !self.tasks[child].is_done()
                && !self.try_replica(context, child, replica.as_ref(), hedge, now)
            {
                self.fail_over(context, child, now)?;
            }
        }
        Ok(())
    }

    /// Whether a node may still answer for a task, or for one that it is a part of.
    fn is_awaited(&self, mut id: TaskId) -> bool {
        loop {
            let mut open = self.open_attempts(id);
            if open.any(|attempt| matches!(attempt.execution, Execution::Call(_))) {
                return true;
            }
            match self.tasks[id].parent {
                Some(parent) => id = self.attempts[parent].task,
                None => return false,
            }
        }
    }

    /// No replica accepts a task: replicas are sought again when the nodes change, or after a
    /// pause.
    fn strand(
        &mut self,
        context: &LayerContext<'_>,
        id: TaskId,
        now: Instant,
    ) -> Result<(), ExpertError> {
        let awaited = self.is_awaited(id) || context.dispatcher.selector().awaits_nodes();
        let task = &mut self.tasks[id];
        if let Some(failure) = task.final_failure().filter(|_| !awaited) {
            return Err(match failure.error {
                CallError::NotFinite(_) => not_finite_error(context.batch.layer, task),
                _ => final_error(failure),
            });
        }
        metrics::stranded();
        task.strand(now);
        let failure = task.failure.as_ref();
        let busy = failure.is_some_and(|f| f.error == CallError::Busy);
        if !busy && let Some(suppressed) = context.dispatcher.log_throttles.stranded.pass(now) {
            let rects = task.tiles.rects();
            let (tiles, absent) = context.dispatcher.selector().describe_missing(rects);
            let (node, reason) = absent.unwrap_or_default();
            tracing::warn!(
                layer = context.batch.layer,
                %tiles, %node, %reason, suppressed,
                "some experts have no available replica; the request waits for a node"
            );
        }
        Ok(())
    }
}

/// The error for tiles whose rows are infinite or NaN wherever they are computed.
pub(super) fn not_finite_error(layer: usize, task: &TileTask) -> ExpertError {
    let mut names: Vec<&str> = task
        .not_finite
        .iter()
        .map(|(node, _)| &*node.name)
        .collect();
    if names.is_empty() {
        // A part of a task that failed as a whole.
        names.extend(task.failure.as_ref().map(|failure| &*failure.node));
    }
    ExpertError::NotFinite {
        layer,
        tiles: list(task.tiles.rects()),
        computed_by: names.join(", "),
    }
}

fn final_error(failure: &TaskFailure) -> ExpertError {
    let node = failure.node.to_string();
    match &failure.error {
        CallError::Malformed(reason) => ExpertError::Malformed {
            node,
            reason: reason.clone(),
        },
        CallError::Refused(reason) => ExpertError::Refused {
            node,
            reason: reason.clone(),
        },
        other => ExpertError::Refused {
            node,
            reason: other.to_string(),
        },
    }
}
