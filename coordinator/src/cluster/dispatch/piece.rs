//! A piece of a layer's work and the ways in which it is being computed.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_common::expert::ExpertBatch;
use ds4_common::tiles::{TileRect, TileSet};

use crate::cluster::combine::Reply;
use crate::cluster::fabric::{CallError, CallId, NodeId, ViewNode};

/// First pause before work that nobody takes is offered again, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(250);

/// Position of a piece, or of an attempt, in its part.
pub(super) type PieceId = usize;
pub(super) type AttemptId = usize;

/// Some tiles whose rows are wanted. The first attempt that has them all ends the others.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) tiles: Arc<TileSet>,
    /// Rows that a holder of the tiles returns.
    pub(super) rows: usize,
    pub(super) products: u64,
    /// The attempt of another piece that this piece is a part of.
    pub(super) parent: Option<AttemptId>,
    pub(super) attempts: Vec<AttemptId>,
    /// Nodes that failed since somebody was last waited for.
    pub(super) failed: Vec<NodeId>,
    pub(super) fault: Option<Fault>,
    /// Whether every failure was final since the piece was last offered to all; `None` without one.
    hopeless: Option<bool>,
    pub(super) state: PieceState,
    /// The next pause, if nobody takes it.
    pause: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceState {
    Open,
    /// Nobody takes it until then, or until the nodes change.
    Stranded(Instant),
    /// Nothing is to be computed for these tokens.
    Empty,
    Done(AttemptId),
}

/// The last thing that went wrong with a piece.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) node: Arc<str>,
    pub(super) error: CallError,
}

/// One way of computing a piece.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) piece: PieceId,
    pub(super) work: Work,
    /// Whether it was made because another was late.
    pub(super) hedge: bool,
    pub(super) open: bool,
}

#[derive(Debug)]
pub(super) enum Work {
    Call(OpenCall),
    /// In this process, rectangle by rectangle.
    Own {
        left: Vec<TileRect>,
        done: Vec<(TileRect, Vec<f32>)>,
    },
    /// As other pieces, of which so many are missing.
    Split {
        pieces: Range<PieceId>,
        missing: usize,
    },
}

/// A call to a node.
#[derive(Debug)]
pub(super) struct OpenCall {
    pub(super) node: ViewNode,
    pub(super) id: CallId,
    pub(super) sent: Instant,
    pub(super) patience: Patience,
    pub(super) reply: Option<Reply>,
}

/// What is done when a call has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// From then on it is late.
    LateAt { late: Instant, silent: Instant },
    /// From then on it is given up.
    SilentAt(Instant),
    /// Nothing more can be done than wait.
    Spent,
}

impl Patience {
    pub(super) fn next(self) -> Option<Instant> {
        match self {
            Patience::LateAt { late, .. } => Some(late),
            Patience::SilentAt(silent) => Some(silent),
            Patience::Spent => None,
        }
    }
}

impl Piece {
    pub(super) fn new(
        tiles: Arc<TileSet>,
        rows: usize,
        products: u64,
        parent: Option<AttemptId>,
    ) -> Self {
        Piece {
            tiles,
            rows,
            products,
            parent,
            attempts: Vec::new(),
            failed: Vec::new(),
            fault: None,
            hopeless: None,
            state: match rows {
                0 => PieceState::Empty,
                _ => PieceState::Open,
            },
            pause: FIRST_PAUSE,
        }
    }

    /// Whether its rows are there.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, PieceState::Done(_) | PieceState::Empty)
    }

    pub(super) fn failed_at(&mut self, node: &ViewNode, error: CallError) {
        self.hopeless = Some(self.hopeless.unwrap_or(true) && error.is_final());
        self.failed.push(node.id);
        self.fault = Some(Fault {
            node: Arc::clone(&node.name),
            error,
        });
    }

    /// What ends the request if nobody is left to ask: all who could compute it were asked, and
    /// would say the same again.
    pub(super) fn verdict(&self) -> Option<&Fault> {
        self.fault.as_ref().filter(|_| self.hopeless == Some(true))
    }

    /// A part of `whole`, for other places than those that failed it.
    pub(super) fn inherit(&mut self, whole: &Piece) {
        self.failed.clone_from(&whole.failed);
        self.fault.clone_from(&whole.fault);
        self.hopeless = whole.hopeless;
    }

    /// Nobody takes it now.
    pub(super) fn strand(&mut self, now: Instant) {
        self.state = PieceState::Stranded(now + self.pause);
        self.pause = (self.pause * 2).min(LAST_PAUSE);
    }

    /// It is offered again, to those that failed as well.
    pub(super) fn retry(&mut self) {
        self.state = PieceState::Open;
        self.failed.clear();
        self.hopeless = None;
    }
}

/// (token, chosen expert, block) triples of `rects` for the tokens in `tokens`.
pub(super) fn products(batch: &ExpertBatch, tokens: Range<usize>, rects: &[TileRect]) -> u64 {
    let routes = batch.routes_of_all(tokens);
    let of_rect = |rect: &TileRect| {
        let chosen = routes.iter().filter(|r| rect.experts.contains(r.expert));
        chosen.count() as u64 * u64::from(rect.blocks.len())
    };
    rects.iter().map(of_rect).sum()
}
