//! Audited tasks: their rows are used once two places have computed the same bits.
//!
//! The first answer of an audited task waits for a second one, of another node or the own file.
//! Equal, the task is done. Otherwise further places are asked until two agree, and those that
//! differ are quarantined. The layer is then computed anew: a node that was wrong once may have been
//! wrong in its other calls.

use std::time::Instant;

use bytes::Bytes;

use super::{LayerContext, SubBatch};
use crate::cluster::dispatch::metrics::{self, AuditOutcome};
use crate::cluster::dispatch::replica_selector::Replica;
use crate::cluster::dispatch::task::{AttemptId, CallTimeout, Execution, TaskId};
use crate::cluster::known_calls::digest;
use crate::cluster::node_metrics::NumberFault;
use crate::cluster::tile_assignment::list;
use crate::cluster::transport::CancelReason;
use crate::engine::ExpertError;

impl SubBatch {
    /// An attempt has its rows, of a node or of the own file.
    pub(super) fn delivered(
        &mut self,
        context: &LayerContext<'_>,
        attempt: AttemptId,
        now: Instant,
    ) -> Result<(), ExpertError> {
        let id = self.attempts[attempt].task;
        self.attempts[attempt].open = false;
        if !self.tasks[id].audited || !self.is_comparable(id, attempt) {
            self.complete(context, attempt);
            return Ok(());
        }
        let open = |a: &AttemptId| self.attempts[*a].open;
        let mut others = self.tasks[id].attempts.iter().filter(|a| open(a));
        if others.any(|other| !self.is_comparable(id, *other)) {
            self.cancel_attempts(context, id, CancelReason::Unwanted);
        }
        self.tasks[id].answers.push(attempt);
        self.advance_audit(context, id, now)
    }

    /// Whether an attempt gives the rows of the task's own rectangles; others have other rows. What
    /// a split gives was audited in its parts, and what the own file gives needs no audit.
    fn is_comparable(&self, id: TaskId, attempt: AttemptId) -> bool {
        match &self.attempts[attempt].execution {
            Execution::Call(_) => true,
            Execution::Local { pending, done } => {
                let rects = done.iter().map(|(rect, _)| rect);
                let rects = rects.chain(pending.iter().rev());
                !self.tasks[id].answers.is_empty() && rects.eq(self.tasks[id].tiles.rects())
            }
            Execution::Split { .. } => false,
        }
    }

    /// Decides an audited task that has answers, or asks for another one.
    pub(super) fn advance_audit(
        &mut self,
        context: &LayerContext<'_>,
        id: TaskId,
        now: Instant,
    ) -> Result<(), ExpertError> {
        let answers = self.tasks[id].answers.clone();
        let rows: Vec<Bytes> = answers.iter().map(|a| self.rows_of(*a)).collect();
        let agreed = |i: &usize| rows[..*i].contains(&rows[*i]);
        if let Some(agreed) = (1..answers.len()).find(agreed) {
            self.conclude(context, id, &answers, &rows, agreed, now);
            return Ok(());
        }
        let hopeful = self
            .open_attempts(id)
            .any(|attempt| match &attempt.execution {
                Execution::Call(call) => call.timeout != CallTimeout::Expired,
                Execution::Local { .. } | Execution::Split { .. } => true,
            });
        if hopeful {
            return Ok(());
        }
        loop {
            let excluded = self.excluded_nodes(id);
            let own = self.own_answer(id);
            let next = context.dispatcher.selector().second_opinion(
                context.batch.layer,
                self.tasks[id].tiles.rects(),
                &excluded,
                own.is_none(),
            );
            match next {
                None => {
                    // Everything but the experts is computed from the own file for every token.
                    if let Some(own) = own.filter(|_| answers.len() > 1) {
                        self.conclude(context, id, &answers, &rows, own, now);
                        return Ok(());
                    }
                    return self.end_audit(context, id, now);
                }
                Some(Replica::Local) => {
                    let mut pending = self.tasks[id].tiles.rects().to_vec();
                    // They are taken from the end.
                    pending.reverse();
                    let done = Vec::new();
                    self.add_attempt(id, Execution::Local { pending, done }, false);
                    return Ok(());
                }
                Some(node) => {
                    if self.try_replica(context, id, Some(&node), false, now) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Which of the answers is the own file's.
    fn own_answer(&self, id: TaskId) -> Option<usize> {
        let own = |a: &AttemptId| matches!(self.attempts[*a].execution, Execution::Local { .. });
        self.tasks[id].answers.iter().position(own)
    }

    /// Nobody else can be asked about an audited task.
    ///
    /// # Errors
    /// There are answers that contradict each other.
    pub(super) fn end_audit(
        &mut self,
        context: &LayerContext<'_>,
        id: TaskId,
        now: Instant,
    ) -> Result<(), ExpertError> {
        match self.tasks[id].answers[..] {
            [] => Ok(()),
            [only] => {
                metrics::audit(AuditOutcome::Unanswered);
                self.complete(context, only);
                Ok(())
            }
            _ => Err(self.undecided(context, id, now)),
        }
    }

    /// Ends the audits of all tasks that are not done.
    ///
    /// # Errors
    /// Some answers contradict each other.
    pub(in crate::cluster::dispatch) fn end_audits(
        &mut self,
        context: &LayerContext<'_>,
        now: Instant,
    ) -> Result<(), ExpertError> {
        for id in 0..self.tasks.len() {
            if !self.tasks[id].is_done() {
                self.end_audit(context, id, now)?;
            }
        }
        Ok(())
    }

    /// Two answers are the same: they are right, and others are not.
    fn conclude(
        &mut self,
        context: &LayerContext<'_>,
        id: TaskId,
        answers: &[AttemptId],
        rows: &[Bytes],
        agreed: usize,
        now: Instant,
    ) {
        let right = &rows[agreed];
        let differ = answers.iter().zip(rows).filter(|(_, rows)| *rows != right);
        let differ: Vec<_> = differ
            .map(|(answer, rows)| (*answer, rows.clone()))
            .collect();
        metrics::audit(match differ.is_empty() {
            true => AuditOutcome::Same,
            false => AuditOutcome::Differs,
        });
        for (answer, wrong) in differ {
            let (layer, tiles) = (context.batch.layer, list(self.tasks[id].tiles.rects()));
            let (found, expected) = (digest(&wrong), digest(right));
            match &self.attempts[answer].execution {
                Execution::Call(call) => {
                    let node = call.node.clone();
                    tracing::error!(
                        node = %node.name, layer, %tiles,
                        found = format!("{found:016x}"), expected = format!("{expected:016x}"),
                        "an expert node computed other numbers than others do"
                    );
                    let rects = self.tasks[id].tiles.rects().to_vec();
                    let test = self.return_test(context, rects, right, Some(&wrong));
                    let dispatcher = context.dispatcher;
                    dispatcher.quarantine(&node, NumberFault::Audit, test, now);
                }
                _ => tracing::error!(
                    layer, %tiles,
                    found = format!("{found:016x}"), expected = format!("{expected:016x}"),
                    "the coordinator's own file gives other numbers than two expert nodes; check \
                     it with `ds4-coord verify`"
                ),
            }
        }
        self.complete(context, answers[agreed]);
    }

    /// Every place that holds the tiles gave other rows: all nodes among them are suspects.
    fn undecided(&mut self, context: &LayerContext<'_>, id: TaskId, now: Instant) -> ExpertError {
        metrics::audit(AuditOutcome::Undecided);
        let (layer, tiles) = (context.batch.layer, list(self.tasks[id].tiles.rects()));
        let mut computed_by = Vec::new();
        for answer in self.tasks[id].answers.clone() {
            let found = digest(&self.rows_of(answer));
            let name = match &self.attempts[answer].execution {
                Execution::Call(call) => call.node.name.to_string(),
                _ => "the coordinator's own file".to_owned(),
            };
            computed_by.push(format!("{name} ({found:016x})"));
            if let Execution::Call(call) = &self.attempts[answer].execution {
                let node = call.node.clone();
                context
                    .dispatcher
                    .quarantine(&node, NumberFault::Audit, None, now);
            }
        }
        let computed_by = computed_by.join(", ");
        tracing::error!(
            layer, %tiles, %computed_by,
            "places that hold the same experts give different numbers, and no other can decide"
        );
        ExpertError::Contradiction {
            layer,
            tiles,
            computed_by,
        }
    }

    /// Blames the nodes that computed infinity or NaN for a task whose rows are finite elsewhere.
    pub(super) fn blame_not_finite(&mut self, context: &LayerContext<'_>, id: TaskId) {
        let suspects = std::mem::take(&mut self.tasks[id].not_finite);
        for (node, _) in suspects {
            let now = context.dispatcher.transport.now();
            tracing::error!(
                node = %node.name, layer = context.batch.layer,
                tiles = list(self.tasks[id].tiles.rects()),
                "an expert node computed infinity or NaN where another place computed numbers"
            );
            let (mut rects, mut rows) = (Vec::new(), Vec::new());
            self.copy_rows(id, &mut rects, &mut rows);
            let test = self.return_test(context, rects, &rows, None);
            context
                .dispatcher
                .quarantine(&node, NumberFault::NotFinite, test, now);
        }
    }
}
