//! What time does to a part: late calls, silent ones, and pieces that wait for somebody.

use std::time::Instant;

use super::{Part, Shared};
use crate::cluster::dispatch::counters::{self, Hedge};
use crate::cluster::dispatch::health::Standing;
use crate::cluster::dispatch::piece::{Patience, PieceId, PieceState, Work};
use crate::cluster::dispatch::router::{Place, Reach};
use crate::cluster::fabric::ViewNode;
use crate::engine::ExpertError;

impl Part {
    /// Looks at the clock: late calls get a hedge, silent ones are given up, stranded pieces are
    /// offered again.
    pub(in crate::cluster::dispatch) fn tick(
        &mut self,
        shared: &Shared<'_>,
        now: Instant,
    ) -> Result<(), ExpertError> {
        let epoch = shared.dispatcher.router().epoch();
        let changed = std::mem::replace(&mut self.epoch, epoch) != epoch;
        for id in 0..self.pieces.len() {
            if let PieceState::Stranded(until) = self.pieces[id].state
                && (changed || now >= until)
            {
                self.pieces[id].retry();
                self.elsewhere(shared, id, now)?;
            }
        }
        for attempt in 0..self.attempts.len() {
            let entry = &mut self.attempts[attempt];
            let Work::Call(call) = &mut entry.work else {
                continue;
            };
            if !entry.open || call.patience.next().is_none_or(|at| now < at) {
                continue;
            }
            let (id, node) = (entry.piece, call.node.clone());
            if let Patience::LateAt { silent, .. } = call.patience {
                call.patience = Patience::SilentAt(silent);
                shared
                    .dispatcher
                    .router()
                    .demote(node.id, Standing::Slow, now);
                self.hedge(shared, id, now)?;
            } else {
                call.patience = Patience::Spent;
                self.silent(shared, id, &node, now)?;
            }
        }
        Ok(())
    }

    /// Asks somebody else as well, if the budget allows it.
    fn hedge(&mut self, shared: &Shared<'_>, id: PieceId, now: Instant) -> Result<(), ExpertError> {
        let offers = self.offers(shared, id, Reach::Nodes);
        let nobody = |(place, _): &(Place, _)| matches!(place, Place::Nobody);
        if offers.is_empty() || offers.iter().any(nobody) {
            return Ok(());
        }
        if !shared.dispatcher.budget().spend(offers.len()) {
            counters::hedge(Hedge::Denied);
            return Ok(());
        }
        match &offers[..] {
            [(place, rects)] if rects == self.pieces[id].tiles.rects() => {
                self.place(shared, id, place, true, now);
                Ok(())
            }
            _ => self.split(shared, id, offers, true, now),
        }
    }

    /// Gives a call up without ending it: should the answer come after all, it is as good as any.
    fn silent(
        &mut self,
        shared: &Shared<'_>,
        id: PieceId,
        node: &ViewNode,
        now: Instant,
    ) -> Result<(), ExpertError> {
        let news = shared
            .dispatcher
            .router()
            .demote(node.id, Standing::Silent, now);
        if news {
            tracing::warn!(
                node = %node.name, layer = shared.batch.layer,
                "expert node is silent: others take its work until it answers"
            );
        }
        if self.is_in_work(id) {
            return Ok(());
        }
        counters::failover(None);
        self.elsewhere(shared, id, now)
    }

    /// When the clock is to be looked at again; `None` if never.
    pub(in crate::cluster::dispatch) fn next_tick(&self) -> Option<Instant> {
        let calls = self.attempts.iter().filter(|a| a.open);
        let due = calls.filter_map(|attempt| match &attempt.work {
            Work::Call(call) => call.patience.next(),
            Work::Own { .. } | Work::Split { .. } => None,
        });
        let stranded = self.pieces.iter().filter_map(|piece| match piece.state {
            PieceState::Stranded(until) => Some(until),
            _ => None,
        });
        due.chain(stranded).min()
    }
}
