//! One layer from its first call to the sum of its experts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_common::expert::ExpertBatch;
use ds4_proto::wire::tokens_per_call;

use super::sub_batch::{LayerContext, SubBatch};
use super::{Dispatcher, metrics};
use crate::cluster::tile_assignment::list;
use crate::cluster::transport::{CallReply, CancelReason, Mailbox};
use crate::engine::{ExpertError, PendingExperts};

/// Longest wait before the caller is asked again whether it gives up, and before the membership is
/// looked at again.
const GIVE_UP_INTERVAL: Duration = Duration::from_millis(20);

/// A layer whose calls are under way. Dropping it cancels those that are unanswered.
#[derive(Debug)]
pub(super) struct PendingLayer<'a> {
    context: LayerContext<'a>,
    sub_batches: Vec<SubBatch>,
    /// Why calls are cancelled if this is dropped now.
    cancel_reason: CancelReason,
    /// Whether the deadline has passed and the local fallback computes everything that is missing.
    rest_is_local: bool,
    /// Quarantines that had begun when the calls were sent.
    quarantines: u64,
}

impl<'a> PendingLayer<'a> {
    /// Begins a layer.
    pub(super) fn start(
        dispatcher: &'a Dispatcher,
        batch: Arc<ExpertBatch>,
    ) -> Result<Self, ExpertError> {
        let now = dispatcher.transport.now();
        let mut pending = PendingLayer {
            context: LayerContext {
                dispatcher,
                batch,
                mailbox: Mailbox::default(),
                deadline: now + dispatcher.settings.deadline,
            },
            sub_batches: Vec::new(),
            cancel_reason: CancelReason::Unwanted,
            rest_is_local: false,
            quarantines: 0,
        };
        pending.send(now)?;
        Ok(pending)
    }

    /// Divides the batch into sub-batches and sends their calls.
    fn send(&mut self, now: Instant) -> Result<(), ExpertError> {
        let (dispatcher, batch) = (self.context.dispatcher, Arc::clone(&self.context.batch));
        self.quarantines = dispatcher.quarantines_begun();
        let plan = dispatcher.selector().plan(batch.layer, now)?;
        let shape = dispatcher.settings.shape;
        let most = tokens_per_call(&shape, plan.most_subtrees, batch.input.format());
        if most == 0 {
            return Err(ExpertError::TooLarge);
        }
        let tokens = batch.tokens;
        let count = tokens.div_ceil(most);
        for i in 0..count {
            let range = tokens * i / count..tokens * (i + 1) / count;
            let sub_batch = SubBatch::start(&self.context, &plan, range, i, now)?;
            self.sub_batches.push(sub_batch);
        }
        Ok(())
    }

    /// Computes the layer anew if a node was quarantined since its calls were sent: none of that
    /// node's rows are used.
    fn start_again_without_quarantined(&mut self, now: Instant) -> Result<(), ExpertError> {
        if self.context.dispatcher.quarantines_begun() == self.quarantines {
            return Ok(());
        }
        for sub_batch in &mut self.sub_batches {
            sub_batch.cancel_all(&self.context, CancelReason::Unwanted);
        }
        self.sub_batches.clear();
        // Replies to the calls of before go to the other mailbox.
        self.context.mailbox = Mailbox::default();
        self.send(now)?;
        if self.rest_is_local {
            for sub_batch in &mut self.sub_batches {
                sub_batch.compute_rest_locally(&self.context, now);
            }
        }
        Ok(())
    }

    fn on_reply(&mut self, reply: CallReply, now: Instant) -> Result<(), ExpertError> {
        let (sub_batch, attempt) = (reply.tag >> 32, reply.tag & u64::from(u32::MAX));
        match self.sub_batches.get_mut(sub_batch as usize) {
            Some(sub_batch) => sub_batch.on_reply(&self.context, attempt as usize, reply, now),
            None => Ok(()),
        }
    }

    /// Computes one rectangle by the local fallback. Returns whether there was one to compute.
    fn compute_next_locally(&mut self, now: Instant) -> Result<bool, ExpertError> {
        let dispatcher = self.context.dispatcher;
        for sub_batch in &mut self.sub_batches {
            if !sub_batch.compute_next_locally(&self.context, now)? {
                continue;
            }
            metrics::fallback(dispatcher.transport.now().saturating_duration_since(now));
            if let Some(suppressed) = dispatcher.log_throttles.fallback.pass(now) {
                tracing::warn!(
                    layer = self.context.batch.layer,
                    suppressed,
                    "no node computes some experts; the local fallback computes them"
                );
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// The error for a deadline that has passed.
    fn deadline_error(&mut self) -> ExpertError {
        self.cancel_reason = CancelReason::DeadlinePassed;
        let layer = self.context.batch.layer;
        let deadline_ms = self.context.dispatcher.settings.deadline.as_millis() as u64;
        let Some(blocker) = self.sub_batches.iter().find_map(SubBatch::blocker) else {
            return ExpertError::Incomplete;
        };
        let tiles = list(blocker.rects);
        if let Some(node) = blocker.node {
            return ExpertError::Deadline {
                node: node.name.to_string(),
                layer,
                tiles,
                deadline_ms,
            };
        }
        let dispatcher = self.context.dispatcher;
        let (_, absent) = dispatcher.selector().describe_missing(blocker.rects);
        let failure = blocker.failure;
        let failure = failure.map(|f| (f.node.to_string(), f.error.to_string()));
        let unknown = || ("-".to_owned(), "no node holds them".to_owned());
        let (node, reason) = absent.or(failure).unwrap_or_else(unknown);
        ExpertError::Unreachable {
            node,
            reason,
            layer,
            tiles,
            deadline_ms,
        }
    }

    /// Works until every sub-batch has its rows.
    fn run(&mut self, give_up: &dyn Fn() -> bool) -> Result<(), ExpertError> {
        let transport = Arc::clone(&self.context.dispatcher.transport);
        loop {
            let now = transport.now();
            self.start_again_without_quarantined(now)?;
            if self.sub_batches.iter().all(SubBatch::is_done) {
                return Ok(());
            }
            if let Some(reply) = self.context.mailbox.take() {
                self.on_reply(reply, now)?;
                continue;
            }
            if give_up() {
                return Err(ExpertError::GivenUp);
            }
            if now >= self.context.deadline && !self.rest_is_local {
                if self.context.dispatcher.fallback.is_none() {
                    self.end_audits(now)?;
                    if self.sub_batches.iter().all(SubBatch::is_done) {
                        continue;
                    }
                    return Err(self.deadline_error());
                }
                // However long it takes: nothing else is waited for.
                self.rest_is_local = true;
                for sub_batch in &mut self.sub_batches {
                    sub_batch.compute_rest_locally(&self.context, now);
                }
            }
            self.context.dispatcher.refresh_view();
            for sub_batch in &mut self.sub_batches {
                sub_batch.tick(&self.context, now)?;
            }
            if self.compute_next_locally(now)? {
                continue;
            }
            let ticks = self.sub_batches.iter().filter_map(SubBatch::next_tick);
            let deadline = self.context.deadline;
            let until = ticks.min().map_or(deadline, |at| at.min(deadline));
            let until = until.min(now + GIVE_UP_INTERVAL);
            if let Some(reply) = transport.wait(&self.context.mailbox, until) {
                self.on_reply(reply, transport.now())?;
            }
        }
    }

    /// What is audited is used without a second answer if there is no time for one.
    fn end_audits(&mut self, now: Instant) -> Result<(), ExpertError> {
        for sub_batch in &mut self.sub_batches {
            sub_batch.end_audits(&self.context, now)?;
        }
        Ok(())
    }
}

impl PendingExperts for PendingLayer<'_> {
    fn finish(
        mut self: Box<Self>,
        give_up: &dyn Fn() -> bool,
        out: &mut [f32],
    ) -> Result<(), ExpertError> {
        self.run(give_up)?;
        let hidden = self.context.dispatcher.settings.shape.hidden;
        let PendingLayer {
            context,
            sub_batches,
            ..
        } = &mut *self;
        for sub_batch in sub_batches {
            let tokens = sub_batch.tokens.clone();
            let out = &mut out[tokens.start * hidden..tokens.end * hidden];
            sub_batch.combine(context, out)?;
        }
        Ok(())
    }
}

impl Drop for PendingLayer<'_> {
    fn drop(&mut self) {
        for sub_batch in &mut self.sub_batches {
            sub_batch.cancel_all(&self.context, self.cancel_reason);
        }
    }
}
