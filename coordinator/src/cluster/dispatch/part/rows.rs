//! From the answers of a part to its tokens' sums.

use ds4_common::tiles::TileRect;

use super::{Part, Shared};
use crate::cluster::combine::{Cover, Reply};
use crate::cluster::dispatch::piece::{PieceId, PieceState, Work};
use crate::engine::ExpertError;

impl Part {
    /// Adds the rows of all pieces into `out` (its tokens x hidden).
    pub(in crate::cluster::dispatch) fn combine(
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
            // The same tiles in other rectangles have other rows.
            let rects = self.pieces[id].tiles.rects();
            as_planned &= matches!(&leaves[before..], [(found, _)] if found == rects);
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
}
