//! What happens as time passes: late calls, unresponsive nodes, and tasks that wait for a replica.

use std::time::Instant;

use super::{LayerContext, SubBatch};
use crate::cluster::dispatch::metrics::{self, HedgeOutcome};
use crate::cluster::dispatch::replica_selector::Reach;
use crate::cluster::dispatch::task::{CallTimeout, Execution, TaskId, TaskState};
use crate::cluster::health_state::HealthState;
use crate::cluster::transport::LiveNode;
use crate::engine::ExpertError;

impl SubBatch {
    /// Handles every timeout that is due: late calls are hedged, calls to unresponsive nodes fail
    /// over, and replicas are sought again for stranded tasks.
    pub(in crate::cluster::dispatch) fn tick(
        &mut self,
        context: &LayerContext<'_>,
        now: Instant,
    ) -> Result<(), ExpertError> {
        let epoch = context.dispatcher.selector().epoch();
        let changed = std::mem::replace(&mut self.epoch, epoch) != epoch;
        for id in 0..self.tasks.len() {
            if let TaskState::Stranded(until) = self.tasks[id].state
                && (changed || now >= until)
            {
                self.tasks[id].reopen();
                self.fail_over(context, id, now)?;
            }
        }
        for attempt in 0..self.attempts.len() {
            let entry = &mut self.attempts[attempt];
            let Execution::Call(call) = &mut entry.execution else {
                continue;
            };
            if !entry.open || call.timeout.next().is_none_or(|at| now < at) {
                continue;
            }
            let (id, node) = (entry.task, call.node.clone());
            if let CallTimeout::LateAt { unresponsive, .. } = call.timeout {
                call.timeout = CallTimeout::UnresponsiveAt(unresponsive);
                context
                    .dispatcher
                    .selector()
                    .demote(node.id, HealthState::Slow, now);
                self.hedge(context, id, now)?;
            } else {
                call.timeout = CallTimeout::Expired;
                self.on_unresponsive(context, id, &node, now)?;
            }
        }
        Ok(())
    }

    /// Sends a task to other replicas as well, if there are any and the budget allows it.
    fn hedge(
        &mut self,
        context: &LayerContext<'_>,
        id: TaskId,
        now: Instant,
    ) -> Result<(), ExpertError> {
        // An audit waits for no second replica.
        if !self.tasks[id].answers.is_empty() {
            return Ok(());
        }
        let others = self.other_replicas(context, id, Reach::HealthyNodes);
        if others.is_empty() || others.iter().any(|(replica, _)| replica.is_none()) {
            return Ok(());
        }
        if !context.dispatcher.hedge_budget().spend(others.len()) {
            metrics::hedge(HedgeOutcome::Denied);
            return Ok(());
        }
        match &others[..] {
            [(replica, rects)] if rects == self.tasks[id].tiles.rects() => {
                self.try_replica(context, id, replica.as_ref(), true, now);
                Ok(())
            }
            _ => self.split(context, id, others, true, now),
        }
    }

    /// Has another replica do the work without cancelling the call: if the reply comes after all,
    /// it is as good as any other.
    fn on_unresponsive(
        &mut self,
        context: &LayerContext<'_>,
        id: TaskId,
        node: &LiveNode,
        now: Instant,
    ) -> Result<(), ExpertError> {
        let changed = context
            .dispatcher
            .selector()
            .demote(node.id, HealthState::Unresponsive, now);
        if changed {
            tracing::warn!(
                node = %node.name, layer = context.batch.layer,
                "an expert node is unresponsive; other replicas do its work until it answers"
            );
        }
        if self.is_in_progress(id) {
            return Ok(());
        }
        metrics::failover(None);
        self.fail_over(context, id, now)
    }

    /// When [`SubBatch::tick`] is due; `None` if no timeout is running.
    pub(in crate::cluster::dispatch) fn next_tick(&self) -> Option<Instant> {
        let calls = self.attempts.iter().filter(|a| a.open);
        let due = calls.filter_map(|attempt| match &attempt.execution {
            Execution::Call(call) => call.timeout.next(),
            Execution::Local { .. } | Execution::Split { .. } => None,
        });
        let stranded = self.tasks.iter().filter_map(|task| match task.state {
            TaskState::Stranded(until) => Some(until),
            _ => None,
        });
        due.chain(stranded).min()
    }
}
