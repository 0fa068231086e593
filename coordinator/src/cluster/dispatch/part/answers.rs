//! What comes of a piece: an answer, a failure, or nobody who still wants it.

use std::time::Instant;

use super::{Part, Shared};
use crate::cluster::combine::Reply;
use crate::cluster::dispatch::counters::{self, Hedge};
use crate::cluster::dispatch::health::Standing;
use crate::cluster::dispatch::piece::{AttemptId, PieceId, PieceState, Work};
use crate::cluster::fabric::{Arrival, CallError, Forgotten, ViewNode};
use crate::engine::ExpertError;

impl Part {
    /// Takes an answer to the call of attempt `attempt`.
    pub(in crate::cluster::dispatch) fn arrived(
        &mut self,
        shared: &Shared<'_>,
        attempt: AttemptId,
        arrival: Arrival,
        now: Instant,
    ) -> Result<(), ExpertError> {
        let Some(entry) = self.attempts.get_mut(attempt).filter(|a| a.open) else {
            return Ok(());
        };
        let (id, hedge) = (entry.piece, entry.hedge);
        let Work::Call(call) = &mut entry.work else {
            return Ok(());
        };
        let node = call.node.clone();
        let products = self.pieces[id].products;
        match arrival.rows {
            Ok(rows) => {
                let took = arrival.at.saturating_duration_since(call.sent);
                call.reply = Some(Reply::Wire(rows));
                let mut router = shared.dispatcher.router();
                router.answered(node.id, products, took, now);
                drop(router);
                self.finished(shared, attempt);
                Ok(())
            }
            Err(error) => {
                entry.open = false;
                shared.dispatcher.router().ended(node.id, products);
                if hedge {
                    counters::hedge(Hedge::Failed);
                }
                self.failed(shared, id, &node, error, now)
            }
        }
    }

    fn failed(
        &mut self,
        shared: &Shared<'_>,
        id: PieceId,
        node: &ViewNode,
        error: CallError,
        now: Instant,
    ) -> Result<(), ExpertError> {
        counters::failover(Some(&error));
        // A busy node is no news; one that breaks calls is.
        if !matches!(error, CallError::Busy)
            && let Some(held) = shared.dispatcher.messages.failover.pass(now)
        {
            tracing::warn!(
                node = %node.name, layer = shared.batch.layer, reason = %error, held_back = held,
                "expert node failed a call: its work goes elsewhere"
            );
        }
        if error.is_final() {
            // It answers, but is of no use: probes find out when that changes.
            let mut router = shared.dispatcher.router();
            router.demote(node.id, Standing::Silent, now);
        }
        self.pieces[id].failed_at(node, error);
        if self.is_in_work(id) {
            return Ok(());
        }
        // The router should know who is gone before it is asked who else.
        shared.dispatcher.look();
        self.elsewhere(shared, id, now)
    }

    /// An attempt has its rows: the piece is done, and with it perhaps the one it is a part of.
    pub(super) fn finished(&mut self, shared: &Shared<'_>, mut attempt: AttemptId) {
        loop {
            self.attempts[attempt].open = false;
            let (id, hedge) = (self.attempts[attempt].piece, self.attempts[attempt].hedge);
            let is_call = matches!(self.attempts[attempt].work, Work::Call(_));
            if hedge && is_call {
                counters::hedge(Hedge::Won);
            }
            self.pieces[id].state = PieceState::Done(attempt);
            self.drop_attempts(shared, id, Forgotten::Cancelled);
            let Some(parent) = self.pieces[id].parent else {
                self.missing -= 1;
                return;
            };
            let Work::Split { missing, .. } = &mut self.attempts[parent].work else {
                return;
            };
            *missing -= 1;
            if *missing > 0 || !self.attempts[parent].open {
                return;
            }
            attempt = parent;
        }
    }

    /// Ends all attempts at a piece that are open.
    fn drop_attempts(&mut self, shared: &Shared<'_>, id: PieceId, why: Forgotten) {
        for at in 0..self.pieces[id].attempts.len() {
            let attempt = self.pieces[id].attempts[at];
            let entry = &mut self.attempts[attempt];
            if !std::mem::replace(&mut entry.open, false) {
                continue;
            }
            match &mut entry.work {
                Work::Call(call) => {
                    call.node.link.cancel(call.id, why);
                    let (node, products) = (call.node.id, self.pieces[id].products);
                    shared.dispatcher.router().ended(node, products);
                    if entry.hedge {
                        counters::hedge(Hedge::Lost);
                    }
                }
                Work::Own { left, done } => {
                    left.clear();
                    done.clear();
                }
                Work::Split { pieces, .. } => {
                    for child in pieces.clone() {
                        self.drop_attempts(shared, child, why);
                        if !self.pieces[child].is_done() {
                            self.pieces[child].state = PieceState::Empty;
                        }
                    }
                }
            }
        }
    }

    /// Forgets everything that is not answered.
    pub(in crate::cluster::dispatch) fn abandon(&mut self, shared: &Shared<'_>, why: Forgotten) {
        for id in 0..self.map.rows.len() {
            self.drop_attempts(shared, id, why);
        }
    }
}
