//! How a task ends: with rows, with a failure, or because the rows are no longer wanted.

use std::time::Instant;

use super::failover::not_finite_error;
use super::{LayerContext, SubBatch};
use crate::cluster::combine::ReplyRows;
use crate::cluster::dispatch::metrics::{self, HedgeOutcome};
use crate::cluster::dispatch::task::{AttemptId, Execution, TaskId, TaskState};
use crate::cluster::health_state::HealthState;
use crate::cluster::transport::{CallError, CallReply, CancelReason, LiveNode};
use crate::engine::ExpertError;

impl SubBatch {
    /// Takes the reply to the call of attempt `attempt`.
    pub(in crate::cluster::dispatch) fn on_reply(
        &mut self,
        context: &LayerContext<'_>,
        attempt: AttemptId,
        reply: CallReply,
        now: Instant,
    ) -> Result<(), ExpertError> {
        let Some(entry) = self.attempts.get_mut(attempt).filter(|a| a.open) else {
            return Ok(());
        };
        let (id, hedge) = (entry.task, entry.hedge);
        let Execution::Call(call) = &mut entry.execution else {
            return Ok(());
        };
        let node = call.node.clone();
        let ops = self.tasks[id].expert_block_ops;
        // Whatever happened between the node's computation and this thread shows here.
        let rows = reply.rows.and_then(|rows| Ok(rows.check()?));
        match rows {
            Ok(rows) => {
                let took = reply.received.saturating_duration_since(call.sent);
                call.rows = Some(ReplyRows::Wire(rows));
                let mut selector = context.dispatcher.selector();
                selector.answered(node.id, ops, took, now);
                drop(selector);
                self.delivered(context, attempt, now)
            }
            Err(error) => {
                entry.open = false;
                context.dispatcher.selector().ended(node.id, ops);
                if hedge {
                    metrics::hedge(HedgeOutcome::Failed);
                }
                self.on_failure(context, id, &node, error, now)
            }
        }
    }

    fn on_failure(
        &mut self,
        context: &LayerContext<'_>,
        id: TaskId,
        node: &LiveNode,
        error: CallError,
        now: Instant,
    ) -> Result<(), ExpertError> {
        metrics::failover(Some(&error));
        let layer = context.batch.layer;
        let wrong = (context.dispatcher).note_wrong_numbers(node, layer, &error, now);
        // A busy node is normal; one that breaks calls is not.
        if !wrong
            && !matches!(error, CallError::Busy)
            && let Some(suppressed) = context.dispatcher.log_throttles.failover.pass(now)
        {
            tracing::warn!(
                node = %node.name, layer, reason = %error, suppressed,
                "an expert node failed a call; another replica takes over its work"
            );
        }
        if error.is_final() {
            // It replies, but to no use; probes find out when that changes.
            let mut selector = context.dispatcher.selector();
            selector.demote(node.id, HealthState::Unresponsive, now);
        }
        self.tasks[id].failed_at(node, error);
        if self.tasks[id].agreed_not_finite() {
            return Err(not_finite_error(layer, &self.tasks[id]));
        }
        if self.is_in_progress(id) {
            return Ok(());
        }
        // The selector should know which nodes are gone before it chooses another replica.
        context.dispatcher.refresh_view();
        self.fail_over(context, id, now)
    }

    /// An attempt has its rows: its task is done, and with it perhaps the task that it is a part
    /// of.
    pub(super) fn complete(&mut self, context: &LayerContext<'_>, mut attempt: AttemptId) {
        loop {
            self.attempts[attempt].open = false;
            let (id, hedge) = (self.attempts[attempt].task, self.attempts[attempt].hedge);
            let is_call = matches!(self.attempts[attempt].execution, Execution::Call(_));
            if hedge && is_call {
                metrics::hedge(HedgeOutcome::Won);
            }
            self.tasks[id].state = TaskState::Done(attempt);
            self.cancel_attempts(context, id, CancelReason::Unwanted);
            self.blame_not_finite(context, id);
            let Some(parent) = self.tasks[id].parent else {
                self.missing -= 1;
                return;
            };
            let Execution::Split { missing, .. } = &mut self.attempts[parent].execution else {
                return;
            };
            *missing -= 1;
            if *missing > 0 || !self.attempts[parent].open {
                return;
            }
            attempt = parent;
        }
    }

    /// Ends all open attempts at a task.
    pub(super) fn cancel_attempts(
        &mut self,
        context: &LayerContext<'_>,
        id: TaskId,
        why: CancelReason,
    ) {
        for at in 0..self.tasks[id].attempts.len() {
            let attempt = self.tasks[id].attempts[at];
            let entry = &mut self.attempts[attempt];
            if !std::mem::replace(&mut entry.open, false) {
                continue;
            }
            match &mut entry.execution {
                Execution::Call(call) => {
                    call.node.link.cancel(call.id, why);
                    let (node, ops) = (call.node.id, self.tasks[id].expert_block_ops);
                    context.dispatcher.selector().ended(node, ops);
                    if entry.hedge {
                        metrics::hedge(HedgeOutcome::Lost);
                    }
                }
                Execution::Local { pending, done } => {
                    pending.clear();
                    done.clear();
                }
                Execution::Split { tasks, .. } => {
                    for child in tasks.clone() {
                        self.cancel_attempts(context, child, why);
                        if !self.tasks[child].is_done() {
                            self.tasks[child].state = TaskState::Empty;
                        }
                    }
                }
            }
        }
    }

    /// Ends everything that is unanswered.
    pub(in crate::cluster::dispatch) fn cancel_all(
        &mut self,
        context: &LayerContext<'_>,
        why: CancelReason,
    ) {
        for id in 0..self.map.rows.len() {
            self.cancel_attempts(context, id, why);
        }
    }
}
