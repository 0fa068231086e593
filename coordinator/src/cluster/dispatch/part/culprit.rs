//! Who or what keeps a request from its end, for an error message.

use ds4_common::tiles::TileRect;

use super::Part;
use crate::cluster::dispatch::piece::{AttemptId, Fault, Work};
use crate::cluster::fabric::ViewNode;

impl Part {
    /// The piece that keeps the request from its end, for an error message: its tiles, the node
    /// that has it, and what went wrong with it before.
    pub(in crate::cluster::dispatch) fn culprit(&self) -> Option<Culprit<'_>> {
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
pub(in crate::cluster::dispatch) struct Culprit<'a> {
    pub(in crate::cluster::dispatch) rects: &'a [TileRect],
    pub(in crate::cluster::dispatch) node: Option<&'a ViewNode>,
    pub(in crate::cluster::dispatch) fault: Option<&'a Fault>,
}
