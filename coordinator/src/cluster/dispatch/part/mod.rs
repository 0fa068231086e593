//! Some tokens of a layer: its pieces, who computes them, and what to do when somebody does not.
//! A state machine: it asks nobody for the time and never waits.

mod answers;
mod clock;
mod culprit;
mod elsewhere;
mod rows;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_common::expert::ExpertBatch;
use ds4_common::tiles::{Span, TileRect, TileSet};
use ds4_proto::wire::EncodedBatch;

use super::piece::{Attempt, AttemptId, OpenCall, Patience, Piece, PieceId, Work, products};
use super::router::{Place, Plan};
use super::{Dispatcher, counters};
use crate::cluster::combine::RowMap;
use crate::cluster::fabric::{Call, Mailbox, ViewNode};
use crate::engine::ExpertError;

/// A call is given up after so many times the time after which it is late, and not sooner than
/// after the floor. Without another node the own file takes over then.
const SILENT_FACTOR: u32 = 4;
const SILENT_FLOOR: Duration = Duration::from_millis(200);

/// What all parts of one layer call share.
#[derive(Debug)]
pub(super) struct Shared<'a> {
    pub(super) dispatcher: &'a Dispatcher,
    pub(super) batch: Arc<ExpertBatch>,
    pub(super) mailbox: Mailbox,
    pub(super) deadline: Instant,
}

/// One part.
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
                    patience: patience(late, now, shared.deadline),
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

    /// Whether somebody computes the piece who may be expected to answer.
    fn is_in_work(&self, id: PieceId) -> bool {
        let hopeful = |attempt: &Attempt| match &attempt.work {
            Work::Call(call) => call.patience != Patience::Spent,
            Work::Own { .. } | Work::Split { .. } => true,
        };
        self.pieces[id].is_done() || self.open_attempts(id).any(hopeful)
    }

    fn open_attempts(&self, id: PieceId) -> impl Iterator<Item = &Attempt> {
        let attempts = self.pieces[id].attempts.iter();
        attempts.map(|&a| &self.attempts[a]).filter(|a| a.open)
    }

    /// Has everything that is missing computed in this process, whoever else may be at it.
    pub(super) fn bring_home(&mut self, shared: &Shared<'_>, now: Instant) {
        for id in 0..self.pieces.len() {
            let covered = |a: &Attempt| !matches!(a.work, Work::Call(_));
            if !self.pieces[id].is_done() && !self.open_attempts(id).any(covered) {
                self.place(shared, id, &Place::Own, false, now);
            }
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
}

/// When a call without an answer is late, and when it is given up: early enough before the
/// deadline for somebody else to take it up.
fn patience(late: Duration, now: Instant, deadline: Instant) -> Patience {
    let left = deadline.saturating_duration_since(now);
    let late = late.min(left / 4);
    let silent = (late * SILENT_FACTOR).max(SILENT_FLOOR).min(left / 2);
    Patience::LateAt {
        late: now + late,
        silent: now + silent,
    }
}

/// What this process computes between two looks at whether anybody still wants it: one block.
fn units(rects: &[TileRect]) -> Vec<TileRect> {
    let blocks = |rect: &TileRect| {
        let rect = *rect;
        (rect.blocks.start..rect.blocks.end).map(move |block| TileRect {
            blocks: Span::new(block, block + 1),
            ..rect
        })
    };
    rects.iter().flat_map(blocks).collect()
}
