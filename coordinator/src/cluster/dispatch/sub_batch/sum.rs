//! From the rows of the tasks to the sums of the tokens.

use ds4_common::tiles::TileRect;

use super::{LayerContext, SubBatch};
use crate::cluster::combine::{Cover, ReplyRows};
use crate::cluster::dispatch::task::{Execution, TaskId, TaskState};
use crate::engine::ExpertError;

impl SubBatch {
    /// Writes the sum over all tasks to `out` (its tokens x hidden).
    pub(in crate::cluster::dispatch) fn combine(
        &mut self,
        context: &LayerContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ExpertError> {
        let shape = context.dispatcher.settings.shape;
        let mut delivered = Vec::new();
        let mut as_planned = true;
        for id in 0..self.map.rows.len() {
            let before = delivered.len();
            self.take_rows(id, &mut delivered);
            // The same tiles in other rectangles have other rows.
            let rects = self.tasks[id].tiles.rects();
            as_planned &= matches!(&delivered[before..], [(found, _)] if found == rects);
        }
        let (rects, rows): (Vec<Vec<TileRect>>, Vec<ReplyRows>) = delivered.into_iter().unzip();
        if as_planned {
            let cover = &self.plan.cover;
            cover.combine(&self.map, &rows, shape.hidden, out);
            return Ok(());
        }
        let cover = Cover::new(shape.grid, rects.iter().map(Vec::as_slice));
        let cover = cover?;
        let map = cover.row_map(&context.batch, self.tokens.clone());
        cover.combine(&map, &rows, shape.hidden, out);
        Ok(())
    }

    /// Appends the rows of a task that is done, each with the rectangles that they are of.
    fn take_rows(&mut self, id: TaskId, delivered: &mut Vec<(Vec<TileRect>, ReplyRows)>) {
        let rects = || self.tasks[id].tiles.rects().to_vec();
        let TaskState::Done(attempt) = self.tasks[id].state else {
            // No token has rows of these tiles, so none are read.
            delivered.push((rects(), ReplyRows::Local(Vec::new())));
            return;
        };
        match &mut self.attempts[attempt].execution {
            Execution::Call(call) => {
                let rows = call.rows.take();
                delivered.push((
                    self.tasks[id].tiles.rects().to_vec(),
                    rows.unwrap_or_else(|| ReplyRows::Local(Vec::new())),
                ));
            }
            Execution::Local { done, .. } => {
                let done = std::mem::take(done);
                delivered.extend(
                    done.into_iter()
                        .map(|(rect, rows)| (vec![rect], ReplyRows::Local(rows))),
                );
            }
            Execution::Split { tasks, .. } => {
                for child in tasks.clone() {
                    self.take_rows(child, delivered);
                }
            }
        }
    }
}
