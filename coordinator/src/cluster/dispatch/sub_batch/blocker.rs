//! What a request is waiting for, for an error message.

use ds4_common::tiles::TileRect;

use super::SubBatch;
use crate::cluster::dispatch::task::{AttemptId, Execution, TaskFailure};
use crate::cluster::transport::LiveNode;

impl SubBatch {
    /// The first unfinished task: its tiles, the node that is computing them, and its last failure.
    pub(in crate::cluster::dispatch) fn blocker(&self) -> Option<Blocker<'_>> {
        let stuck = self.tasks.iter().find(|task| {
            let splits = |&a: &AttemptId| {
                let attempt = &self.attempts[a];
                attempt.open && matches!(attempt.execution, Execution::Split { .. })
            };
            !task.is_done() && !task.attempts.iter().any(splits)
        })?;
        let node = stuck.attempts.iter().find_map(|&a| {
            let attempt = &self.attempts[a];
            match &attempt.execution {
                Execution::Call(call) if attempt.open => Some(&call.node),
                _ => None,
            }
        });
        Some(Blocker {
            rects: stuck.tiles.rects(),
            node,
            failure: stuck.failure.as_ref(),
        })
    }
}

/// The task that a request is waiting for.
#[derive(Debug)]
pub(in crate::cluster::dispatch) struct Blocker<'a> {
    pub(in crate::cluster::dispatch) rects: &'a [TileRect],
    /// The node that has been called and has not answered.
    pub(in crate::cluster::dispatch) node: Option<&'a LiveNode>,
    pub(in crate::cluster::dispatch) failure: Option<&'a TaskFailure>,
}
