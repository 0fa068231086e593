//! Some tokens of a layer: its pieces, who computes them, and what to do when somebody does not.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use ds4_common::expert::ExpertBatch;
use ds4_common::tiles::{TileRect, TileSet};
use ds4_proto::wire::EncodedBatch;

use super::counters::{self, Hedge};
use super::health::Standing;
use super::piece::{
    Attempt, AttemptId, OpenCall, Patience, Piece, PieceId, PieceState, Work, products,
};
use super::router::{Place, Plan, Reach};
use super::{Dispatcher, piece};
use crate::cluster::combine::{Cover, Reply, RowMap, count_rows};
use crate::cluster::fabric::{Arrival, Call, CallError, Forgotten, Mailbox, NodeId, ViewNode};
use crate::engine::ExpertError;

/// After how many times the time at which it is late a call is given up, and at least after how
/// long. Without another node the own file takes over then.
const SILENT_FACTOR: u32 = 4;
const SILENT_FLOOR: std::time::Duration = std::time::Duration::from_millis(200);

/// What all parts of one layer call share.
#[derive(Debug)]
pub(super) struct Shared<'a> {
    pub(super) dispatcher: &'a Dispatcher,
    pub(super) batch: Arc<ExpertBatch>,
    pub(super) mailbox: Mailbox,
    pub(super) deadline: Instant,
}

/// The state machine of one part. It asks nobody for the time and never waits.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) tokens: Range<usize>,
    encoded: EncodedBatch,
    plan: Arc<Plan>,
    map: RowMap,
    /// The plan's shares first, in their order.
    pieces: Vec<Piece>,
    attempts: Vec<Attempt>,
    /// Shares that are not done.
    missing: usize,
    /// In the slots of its calls.
    index: u64,
    /// The nodes that it knows.
    epoch: u64,
}

impl Part {
    /// Hands every share to its place.
    pub(super) fn start(
        shared: &Shared<'_>,
        plan: &Arc<Plan>,
        tokens: Range<usize>,
        index: usize,
        now: Instant,
    ) -> Result<Self, ExpertError> {
        let batch = &shared.batch;
        let map = plan.cover.rows(batch, tokens.clone());
        let piece = |((_, tiles), &rows): (&(Place, Arc<TileSet>), &usize)| {
            let products = products(batch, tokens.clone(), tiles.rects());
            Piece::new(Arc::clone(tiles), rows, products, None)
        };
        let pieces: Vec<Piece> = plan.shares.iter().zip(&map.rows).map(piece).collect();
        let mut part = Part {
            encoded: EncodedBatch::new(batch, tokens.clone()),
            missing: pieces.iter().filter(|piece| !piece.is_done()).count(),
            pieces,
            attempts: Vec::new(),
            plan: Arc::clone(plan),
            map,
            tokens,
            index: index as u64,
            epoch: shared.dispatcher.router().epoch(),
        };
        let mut refused = Vec::new();
        for (id, (place, _)) in plan.shares.iter().enumerate() {
            if part.pieces[id].is_done() {
                continue;
            }
            shared.dispatcher.budget().earn();
            if !part.place(shared, id, place, false, now) {
                refused.push(id);
            }
        }
        // Only after every other node has its message.
        for id in refused {
            part.elsewhere(shared, id, now)?;
        }
        Ok(part)
    }

    pub(super) fn is_done(&self) -> bool {
        self.missing == 0
    }

    /// Takes the piece to a place. Returns whether it is there.
    fn place(
        &mut self,
        shared: &Shared<'_>,
        id: PieceId,
        place: &Place,
        hedge: bool,
        now: Instant,
    ) -> bool {
        let work = match place {
            Place::Nobody => return false,
            Place::Own => Work::Own {
                left: units(self.pieces[id].tiles.rects()),
                done: Vec::new(),
            },
            Place::Node(node) => match self.call(shared, id, node, now) {
                Some(call) => Work::Call(call),
                None => return false,
            },
        };
        self.attempt(id, work, hedge);
        true
    }

    fn attempt(&mut self, id: PieceId, work: Work, hedge: bool) -> AttemptId {
        let attempt = self.attempts.len();
        self.attempts.push(Attempt {
            piece: id,
            work,
            hedge,
            open: true,
        });
        self.pieces[id].attempts.push(attempt);
        attempt
    }

    fn call(
        &mut self,
        shared: &Shared<'_>,
        id: PieceId,
        node: &ViewNode,
        now: Instant,
    ) -> Option<OpenCall> {
        let row_bytes = shared.dispatcher.settings.shape.row_bytes();
        let piece = &mut self.pieces[id];
        let sent = node.link.send(Call {
            encoded: self.encoded.clone(),
            tiles: Arc::clone(&piece.tiles),
            expected: piece.rows * row_bytes,
            deadline: shared.deadline,
            // The attempt that the call is about to be.
            slot: self.index << 32 | self.attempts.len() as u64,
            to: shared.mailbox.clone(),
        });
        match sent {
            Ok(call) => {
                let mut router = shared.dispatcher.router();
                let late = router.late_after(node.id, piece.products);
                router.sent(node.id, piece.products);
                Some(OpenCall {
                    node: node.clone(),
                    id: call,
                    sent: now,
                    patience: Patience::LateAt {
                        late: now + late,
                        silent: now + (late * SILENT_FACTOR).max(SILENT_FLOOR),
                    },
                    reply: None,
                })
            }
            Err(error) => {
                counters::failover(Some(&error));
                piece.failed_at(node, error);
                None
            }
        }
    }

    /// Nodes that a piece must not go to: they have it, or failed.
    fn banned(&self, id: PieceId) -> Vec<NodeId> {
        let piece = &self.pieces[id];
        let open = piece.attempts.iter().filter_map(|&a| {
            let attempt = &self.attempts[a];
            match &attempt.work {
                Work::Call(call) if attempt.open => Some(call.node.id),
                _ => None,
            }
        });
        piece.failed.iter().copied().chain(open).collect()
    }

    /// Who could take a piece now.
    fn offers(
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
    fn elsewhere(
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
                [(place, _)] => {
                    if self.place(shared, id, place, false, now) {
                        return Ok(());
                    }
                }
                _ => return self.split(shared, id, offers, false, now),
            }
        }
    }

    /// Computes a piece in parts.
    fn split(
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
            let rows = count_rows(grid, &shared.batch, self.tokens.clone(), &rects);
            let products = products(&shared.batch, self.tokens.clone(), &rects);
            // Parts of a set are a set; only their number can be wrong.
            let tiles = TileSet::new(grid, rects).map_err(|_| ExpertError::TooLarge)?;
            let mut part = Piece::new(Arc::new(tiles), rows, products, Some(parent));
            part.failed.clone_from(&self.pieces[id].failed);
            part.fault.clone_from(&self.pieces[id].fault);
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

    /// Nobody takes a piece: it is offered again when the nodes change, or after a pause.
    fn strand(
        &mut self,
        shared: &Shared<'_>,
        id: PieceId,
        now: Instant,
    ) -> Result<(), ExpertError> {
        let piece = &mut self.pieces[id];
        if let Some(fault) = piece.fault.as_ref().filter(|fault| fault.hopeless) {
            return Err(final_error(fault));
        }
        counters::stranded();
        piece.strand(now);
        let busy = piece
            .fault
            .as_ref()
            .is_some_and(|f| f.error == CallError::Busy);
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

    /// Takes an answer to the call of attempt `attempt`.
    pub(super) fn arrived(
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
        self.pieces[id].failed_at(node, error);
        if self.is_in_work(id) {
            return Ok(());
        }
        // The router should know who is gone before it is asked who else.
        shared.dispatcher.look();
        self.elsewhere(shared, id, now)
    }

    /// Whether somebody computes the piece.
    fn is_in_work(&self, id: PieceId) -> bool {
        let piece = &self.pieces[id];
        piece.is_done() || piece.attempts.iter().any(|&a| self.attempts[a].open)
    }

    /// Looks at the clock: late calls get a hedge, silent ones are given up, stranded pieces are
    /// offered again.
    pub(super) fn tick(&mut self, shared: &Shared<'_>, now: Instant) -> Result<(), ExpertError> {
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
        if let [(place, _)] = &offers[..] {
            self.place(shared, id, place, true, now);
            return Ok(());
        }
        self.split(shared, id, offers, true, now)
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
        let others = self.pieces[id].attempts.iter().any(|&a| {
            let attempt = &self.attempts[a];
            attempt.open
                && match &attempt.work {
                    Work::Call(call) => call.patience != Patience::Spent,
                    Work::Own { .. } | Work::Split { .. } => true,
                }
        });
        if others {
            return Ok(());
        }
        let offers = self.offers(shared, id, Reach::All);
        let nobody = |(place, _): &(Place, _)| matches!(place, Place::Nobody);
        // Waiting for the silent one is better than for nobody.
        if offers.is_empty() || offers.iter().any(nobody) {
            return Ok(());
        }
        counters::failover(None);
        if let [(place, _)] = &offers[..] {
            self.place(shared, id, place, false, now);
            return Ok(());
        }
        self.split(shared, id, offers, false, now)
    }

    /// An attempt has its rows: the piece is done, and with it perhaps the one it is a part of.
    fn finished(&mut self, shared: &Shared<'_>, mut attempt: AttemptId) {
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
    pub(super) fn abandon(&mut self, shared: &Shared<'_>, why: Forgotten) {
        for id in 0..self.map.rows.len() {
            self.drop_attempts(shared, id, why);
        }
    }

    /// Computes the next rectangle that this process is to compute, if there is one.
    pub(super) fn own_step(&mut self, shared: &Shared<'_>) -> Result<bool, ExpertError> {
        let next = self.attempts.iter().position(|attempt| {
            let Work::Own { left, .. } = &attempt.work else {
                return false;
            };
            attempt.open && !left.is_empty()
        });
        let (Some(attempt), Some(own)) = (next, &shared.dispatcher.own) else {
            return Ok(false);
        };
        let Work::Own { left, done } = &mut self.attempts[attempt].work else {
            return Ok(false);
        };
        let Some(rect) = left.pop() else {
            return Ok(false);
        };
        let mut rows = Vec::new();
        own.compute(&shared.batch, self.tokens.clone(), rect, &mut rows)?;
        done.push((rect, rows));
        if left.is_empty() {
            self.finished(shared, attempt);
        }
        Ok(true)
    }

    /// When the clock is to be looked at again; `None` if never.
    pub(super) fn next_tick(&self) -> Option<Instant> {
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

    /// Adds the rows of all pieces into `out` (its tokens x hidden).
    pub(super) fn combine(
        &mut self,
        shared: &Shared<'_>,
        out: &mut [f32],
    ) -> Result<(), ExpertError> {
        let shape = shared.dispatcher.settings.shape;
        let mut leaves = Vec::new();
        let mut as_planned = true;
        for id in 0..self.map.rows.len() {
            let before = leaves.len();
            self.collect(id, &mut leaves);
            as_planned &= leaves.len() == before + 1;
        }
        let (rects, replies): (Vec<Vec<TileRect>>, Vec<Reply>) = leaves.into_iter().unzip();
        if as_planned {
            let cover = &self.plan.cover;
            cover.combine(&self.map, &replies, shape.hidden, out);
            return Ok(());
        }
        let cover = Cover::new(shape.grid, rects.iter().map(Vec::as_slice));
        let cover = cover.map_err(|_| ExpertError::Closed)?;
        let map = cover.rows(&shared.batch, self.tokens.clone());
        cover.combine(&map, &replies, shape.hidden, out);
        Ok(())
    }

    /// The rows of a piece that is done, with the tiles that they are of.
    fn collect(&mut self, id: PieceId, leaves: &mut Vec<(Vec<TileRect>, Reply)>) {
        let rects = || self.pieces[id].tiles.rects().to_vec();
        let PieceState::Done(attempt) = self.pieces[id].state else {
            // No token has rows of these tiles, so that none are read.
            leaves.push((rects(), Reply::Own(Vec::new())));
            return;
        };
        match &mut self.attempts[attempt].work {
            Work::Call(call) => {
                let reply = call.reply.take();
                leaves.push((
                    self.pieces[id].tiles.rects().to_vec(),
                    reply.unwrap_or_else(|| Reply::Own(Vec::new())),
                ));
            }
            Work::Own { done, .. } => {
                let done = std::mem::take(done);
                leaves.extend(
                    done.into_iter()
                        .map(|(r, rows)| (vec![r], Reply::Own(rows))),
                );
            }
            Work::Split { pieces, .. } => {
                for child in pieces.clone() {
                    self.collect(child, leaves);
                }
            }
        }
    }

    /// The piece that keeps the request from its end, for an error message: its tiles, the node
    /// that has it, and what went wrong with it before.
    pub(super) fn culprit(&self) -> Option<Culprit<'_>> {
        let stuck = self.pieces.iter().find(|piece| {
            let splits = |&a: &AttemptId| {
                let attempt = &self.attempts[a];
                attempt.open && matches!(attempt.work, Work::Split { .. })
            };
            !piece.is_done() && !piece.attempts.iter().any(splits)
        })?;
        let node = stuck.attempts.iter().find_map(|&a| {
            let attempt = &self.attempts[a];
            match &attempt.work {
                Work::Call(call) if attempt.open => Some(&call.node),
                _ => None,
            }
        });
        Some(Culprit {
            rects: stuck.tiles.rects(),
            node,
            fault: stuck.fault.as_ref(),
        })
    }
}

/// Who or what a request waits for.
#[derive(Debug)]
pub(super) struct Culprit<'a> {
    pub(super) rects: &'a [TileRect],
    pub(super) node: Option<&'a ViewNode>,
    pub(super) fault: Option<&'a piece::Fault>,
}

/// What this process computes between two looks at whether anybody still wants it: one block.
fn units(rects: &[TileRect]) -> Vec<TileRect> {
    let blocks = |rect: &TileRect| {
        let rect = *rect;
        (rect.blocks.start..rect.blocks.end).map(move |block| TileRect {
            blocks: ds4_common::tiles::Span::new(block, block + 1),
            ..rect
        })
    };
    rects.iter().flat_map(blocks).collect()
}

fn final_error(fault: &piece::Fault) -> ExpertError {
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
