//! The call by which a quarantined node shows that its numbers are right again.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use ds4_common::tiles::{TileRect, TileSet};
use ds4_proto::wire::bytes_from_floats;

use super::{LayerContext, SubBatch};
use crate::cluster::combine::ReplyRows;
use crate::cluster::dispatch::quarantine::ReturnTest;
use crate::cluster::dispatch::task::{AttemptId, Execution, TaskId, TaskState};
use crate::cluster::known_calls::digest;

/// Most tokens of a test: it is kept in memory as long as the quarantine lasts.
const MOST_TOKENS: usize = 8;

impl SubBatch {
    /// A test with the rows that are right for `rects`. Where the wrong rows are known, it is the
    /// first token with a difference, else the first few tokens that have rows.
    pub(super) fn return_test(
        &self,
        context: &LayerContext<'_>,
        rects: Vec<TileRect>,
        right: &[u8],
        wrong: Option<&[u8]>,
    ) -> Option<Arc<ReturnTest>> {
        let batch = &context.batch;
        let shape = context.dispatcher.settings.shape;
        let width = shape.row_bytes();
        let trees = rects.iter().flat_map(|rect| rect.subtrees(shape.grid));
        let owners: Vec<usize> = trees
            .flat_map(|tree| batch.rows_of(self.tokens.clone(), tree))
            .collect();
        let rows = || right.chunks_exact(width);
        let kept: Range<usize> = match wrong {
            Some(wrong) => {
                let mut pairs = rows().zip(wrong.chunks_exact(width));
                let first = pairs.position(|(right, wrong)| right != wrong)?;
                let token = *owners.get(first)?;
                token..token + 1
            }
            None => {
                let first = owners.iter().copied().min()?;
                first..self.tokens.end.min(first + MOST_TOKENS)
            }
        };
        let of_kept = rows()
            .zip(&owners)
            .filter(|(_, owner)| kept.contains(owner));
        let expected: Vec<&[u8]> = of_kept.map(|(row, _)| row).collect();
        if expected.is_empty() {
            return None;
        }
        Some(Arc::new(ReturnTest {
            batch: Arc::new(batch.part(kept)),
            tiles: Arc::new(TileSet::new(shape.grid, rects).ok()?),
            digest: digest(&expected.concat()),
        }))
    }

    /// The rows of an attempt that delivered, in the form that travels.
    pub(super) fn rows_of(&self, attempt: AttemptId) -> Bytes {
        match &self.attempts[attempt].execution {
            Execution::Call(call) => match &call.rows {
                Some(ReplyRows::Wire(bytes)) => bytes.clone(),
                Some(ReplyRows::Local(floats)) => bytes_from_floats(floats),
                None => Bytes::new(),
            },
            Execution::Local { done, .. } => {
                let all: Vec<f32> = done.iter().flat_map(|(_, rows)| rows).copied().collect();
                bytes_from_floats(&all)
            }
            Execution::Split { .. } => Bytes::new(),
        }
    }

    /// Appends the rectangles of a task that is done and their rows, wherever they were computed.
    pub(super) fn copy_rows(&self, id: TaskId, rects: &mut Vec<TileRect>, rows: &mut Vec<u8>) {
        let TaskState::Done(attempt) = self.tasks[id].state else {
            return;
        };
        match &self.attempts[attempt].execution {
            Execution::Call(_) => rects.extend(self.tasks[id].tiles.rects()),
            Execution::Local { done, .. } => rects.extend(done.iter().map(|(rect, _)| *rect)),
            Execution::Split { tasks, .. } => {
                for child in tasks.clone() {
                    self.copy_rows(child, rects, rows);
                }
            }
        }
        rows.extend_from_slice(&self.rows_of(attempt));
    }
}
