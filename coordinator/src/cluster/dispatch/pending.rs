//! One layer's call from its first message to its sum.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_common::expert::ExpertBatch;
use ds4_proto::wire::tokens_per_call;

use super::part::{Part, Shared};
use super::{Dispatcher, counters};
use crate::cluster::assignment::list;
use crate::cluster::fabric::{Arrival, Forgotten, Mailbox};
use crate::engine::{ExpertError, PendingExperts};

/// Longest wait before the caller is asked whether it still wants the answer, and before it is
/// looked for nodes that came or went.
const GIVE_UP_INTERVAL: Duration = Duration::from_millis(20);

/// A batch on its way. Dropping it cancels what is not answered.
#[derive(Debug)]
pub(super) struct PendingLayer<'a> {
    shared: Shared<'a>,
    parts: Vec<Part>,
    /// Why what is not answered when this is dropped is no longer awaited.
    forgotten: Forgotten,
    /// Whether this process computes all that is missing, since the deadline has passed.
    at_home: bool,
}

impl<'a> PendingLayer<'a> {
    /// Shares the batch out and hands every node its call.
    pub(super) fn start(
        dispatcher: &'a Dispatcher,
        batch: Arc<ExpertBatch>,
    ) -> Result<Self, ExpertError> {
        let now = dispatcher.fabric.now();
        let plan = dispatcher.router().plan(batch.layer, now)?;
        let shape = dispatcher.settings.shape;
        let most = tokens_per_call(&shape, plan.most_subtrees, batch.input.format());
        if most == 0 {
            return Err(ExpertError::TooLarge);
        }
        let tokens = batch.tokens;
        let mut pending = PendingLayer {
            shared: Shared {
                dispatcher,
                batch,
                mailbox: Mailbox::default(),
                deadline: now + dispatcher.settings.deadline,
            },
            parts: Vec::new(),
            forgotten: Forgotten::Cancelled,
            at_home: false,
        };
        let parts = tokens.div_ceil(most);
        for i in 0..parts {
            let range = tokens * i / parts..tokens * (i + 1) / parts;
            let part = Part::start(&pending.shared, &plan, range, i, now)?;
            pending.parts.push(part);
        }
        Ok(pending)
    }

    fn arrived(&mut self, arrival: Arrival, now: Instant) -> Result<(), ExpertError> {
        let (part, attempt) = (arrival.slot >> 32, arrival.slot & u64::from(u32::MAX));
        match self.parts.get_mut(part as usize) {
            Some(part) => part.arrived(&self.shared, attempt as usize, arrival, now),
            None => Ok(()),
        }
    }

    /// Computes one rectangle in this process, if there is something to compute.
    fn own_step(&mut self, now: Instant) -> Result<bool, ExpertError> {
        let dispatcher = self.shared.dispatcher;
        for part in &mut self.parts {
            if !part.own_step(&self.shared)? {
                continue;
            }
            counters::fallback(dispatcher.fabric.now().saturating_duration_since(now));
            if let Some(held) = dispatcher.messages.fallback.pass(now) {
                tracing::warn!(
                    layer = self.shared.batch.layer,
                    held_back = held,
                    "experts that no node computes are computed from the coordinator's own file"
                );
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// The error for a deadline that passed.
    fn late(&mut self) -> ExpertError {
        self.forgotten = Forgotten::Late;
        let layer = self.shared.batch.layer;
        let deadline_ms = self.shared.dispatcher.settings.deadline.as_millis() as u64;
        let Some(culprit) = self.parts.iter().find_map(Part::culprit) else {
            return ExpertError::Closed;
        };
        let tiles = list(culprit.rects);
        if let Some(node) = culprit.node {
            return ExpertError::Deadline {
                node: node.name.to_string(),
                layer,
                tiles,
                deadline_ms,
            };
        }
        let (_, absent) = self.shared.dispatcher.router().absent(culprit.rects);
        let fault = culprit.fault;
        let fault = fault.map(|f| (f.node.to_string(), f.error.to_string()));
        let nobody = || ("-".to_owned(), "no node holds them".to_owned());
        let (node, reason) = absent.or(fault).unwrap_or_else(nobody);
        ExpertError::Unreachable {
            node,
            reason,
            layer,
            tiles,
            deadline_ms,
        }
    }

    fn run(&mut self, give_up: &dyn Fn() -> bool) -> Result<(), ExpertError> {
        let fabric = Arc::clone(&self.shared.dispatcher.fabric);
        while !self.parts.iter().all(Part::is_done) {
            let now = fabric.now();
            if let Some(arrival) = self.shared.mailbox.take() {
                self.arrived(arrival, now)?;
                continue;
            }
            if give_up() {
                return Err(ExpertError::GivenUp);
            }
            if now >= self.shared.deadline && !self.at_home {
                if self.shared.dispatcher.own.is_none() {
                    return Err(self.late());
                }
                // However long that takes: nothing is waited for any more.
                self.at_home = true;
                for part in &mut self.parts {
                    part.bring_home(&self.shared, now);
                }
            }
            self.shared.dispatcher.look();
            for part in &mut self.parts {
                part.tick(&self.shared, now)?;
            }
            if self.own_step(now)? {
                continue;
            }
            let ticks = self.parts.iter().filter_map(Part::next_tick);
            let until = ticks
                .min()
                .map_or(self.shared.deadline, |at| at.min(self.shared.deadline));
            let until = until.min(now + GIVE_UP_INTERVAL);
            if let Some(arrival) = fabric.wait(&self.shared.mailbox, until) {
                self.arrived(arrival, fabric.now())?;
            }
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
        let hidden = self.shared.dispatcher.settings.shape.hidden;
        let PendingLayer { shared, parts, .. } = &mut *self;
        for part in parts {
            let tokens = part.tokens.clone();
            part.combine(shared, &mut out[tokens.start * hidden..tokens.end * hidden])?;
        }
        Ok(())
    }
}

impl Drop for PendingLayer<'_> {
    fn drop(&mut self) {
        for part in &mut self.parts {
            part.abandon(&self.shared, self.forgotten);
        }
    }
}
