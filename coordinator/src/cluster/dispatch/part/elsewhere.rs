//! Where a piece goes when its first place does not compute it.

use std::sync::Arc;
use std::time::Instant;

use ds4_common::tiles::{TileRect, TileSet};

use super::{Part, Shared};
use crate::cluster::dispatch::counters;
use crate::cluster::dispatch::piece::{Fault, Piece, PieceId, Work, products};
use crate::cluster::dispatch::router::{Place, Reach};
use crate::cluster::fabric::{CallError, NodeId};
use crate::engine::ExpertError;

impl Part {
    /// Nodes that a piece must not go to: they have it, or failed.
    fn banned(&self, id: PieceId) -> Vec<NodeId> {
        let open = self
            .open_attempts(id)
            .filter_map(|attempt| match &attempt.work {
                Work::Call(call) => Some(call.node.id),
                Work::Own { .. } | Work::Split { .. } => None,
            });
        self.pieces[id].failed.iter().copied().chain(open).collect()
    }

    /// Who could take a piece now.
    pub(super) fn offers(
        &self,
        shared: &Shared<'_>,
        id: PieceId,
        reach: Reach,
    ) -> Vec<(Place, Vec<TileRect>)> {
        let rects = self.pieces[id].tiles.rects();
        let router = shared.dispatcher.router();
        let layer = shared.batch.layer;
        router.elsewhere(
            layer,
            rects,
            &self.banned(id),
            self.plan.most_subtrees,
            reach,
        )
    }

    /// Takes a piece to whoever else can compute it, or waits for somebody who can.
    pub(super) fn elsewhere(
        &mut self,
        shared: &Shared<'_>,
        id: PieceId,
        now: Instant,
    ) -> Result<(), ExpertError> {
        loop {
            let offers = self.offers(shared, id, Reach::All);
            match &offers[..] {
                [(Place::Nobody, _)] | [] => return self.strand(shared, id, now),
                // A node that refuses is not asked again, so that this ends.
                [(place, rects)] if rects == self.pieces[id].tiles.rects() => {
                    if self.place(shared, id, place, false, now) {
                        return Ok(());
                    }
                }
                _ => return self.split(shared, id, offers, false, now),
            }
        }
    }

    /// Computes a piece in parts.
    pub(super) fn split(
        &mut self,
        shared: &Shared<'_>,
        id: PieceId,
        offers: Vec<(Place, Vec<TileRect>)>,
        hedge: bool,
        now: Instant,
    ) -> Result<(), ExpertError> {
        let grid = shared.dispatcher.settings.shape.grid;
        let first = self.pieces.len();
        let parent = self.attempts.len();
        let mut places = Vec::with_capacity(offers.len());
        for (place, rects) in offers {
            let rows = shared.batch.reply_rows(self.tokens.clone(), &rects);
            let products = products(&shared.batch, self.tokens.clone(), &rects);
            // Parts of a set are a set; only their number can be wrong.
            let tiles = TileSet::new(grid, rects).map_err(|_| ExpertError::TooLarge)?;
            let mut part = Piece::new(Arc::new(tiles), rows, products, Some(parent));
            part.inherit(&self.pieces[id]);
            self.pieces.push(part);
            places.push(place);
        }
        let pieces = first..self.pieces.len();
        let missing = self.pieces[pieces.clone()]
            .iter()
            .filter(|piece| !piece.is_done())
            .count();
        let work = Work::Split {
            pieces: pieces.clone(),
            missing,
        };
        self.attempt(id, work, hedge);
        if missing == 0 {
            self.finished(shared, parent);
        }
        for (child, place) in pieces.zip(&places) {
            if !self.pieces[child].is_done() && !self.place(shared, child, place, hedge, now) {
                self.elsewhere(shared, child, now)?;
            }
        }
        Ok(())
    }

    /// Whether a node may still answer for a piece or for one that it is a part of.
    fn is_awaited(&self, mut id: PieceId) -> bool {
        loop {
            let mut open = self.open_attempts(id);
            if open.any(|attempt| matches!(attempt.work, Work::Call(_))) {
                return true;
            }
            match self.pieces[id].parent {
                Some(parent) => id = self.attempts[parent].piece,
                None => return false,
            }
        }
    }

    /// Nobody takes a piece: it is offered again when the nodes change, or after a pause.
    fn strand(
        &mut self,
        shared: &Shared<'_>,
        id: PieceId,
        now: Instant,
    ) -> Result<(), ExpertError> {
        let awaited = self.is_awaited(id) || shared.dispatcher.router().awaits_nodes();
        let piece = &mut self.pieces[id];
        if let Some(fault) = piece.verdict().filter(|_| !awaited) {
            return Err(final_error(fault));
        }
        counters::stranded();
        piece.strand(now);
        let fault = piece.fault.as_ref();
        let busy = fault.is_some_and(|f| f.error == CallError::Busy);
        if !busy && let Some(held) = shared.dispatcher.messages.stranded.pass(now) {
            let (tiles, absent) = shared.dispatcher.router().absent(piece.tiles.rects());
            let (node, reason) = absent.unwrap_or_default();
            tracing::warn!(
                layer = shared.batch.layer,
                %tiles, %node, %reason, held_back = held,
                "nobody can compute some experts: the request waits for a node"
            );
        }
        Ok(())
    }
}

fn final_error(fault: &Fault) -> ExpertError {
    let node = fault.node.to_string();
    match &fault.error {
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
