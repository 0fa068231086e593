//! All routed experts in this process, without any node.

use std::sync::{Arc, Mutex, PoisonError};

use ds4_common::expert::{ExpertBatch, ExpertStore, TileComputer};
use ds4_common::kernels::Kernels;
use ds4_common::tiles::{TileError, TileRect};

use super::combine::Cover;
use crate::engine::{ExpertBackend, ExpertError, PendingExperts};

/// An [`ExpertBackend`] over the coordinator's own model file. It computes on the rayon pool on
/// which `finish` is called.
#[derive(Debug)]
pub struct LocalBackend {
    /// Floats in a row.
    hidden: usize,
    /// `None` computes the whole grid at once, which leaves nothing to add.
    cut: Option<Cut>,
    buffers: Mutex<Buffers>,
}

#[derive(Debug)]
struct Cut {
    rects: Vec<TileRect>,
    cover: Cover,
}

#[derive(Debug)]
struct Buffers {
    computer: TileComputer,
    /// The rows of each rectangle.
    rows: Vec<Vec<f32>>,
}

impl LocalBackend {
    /// Computes each layer's grid in one piece.
    #[must_use]
    pub fn new(store: ExpertStore, kernels: Kernels) -> Self {
        LocalBackend {
            hidden: store.hidden(),
            cut: None,
            buffers: Mutex::new(Buffers {
                computer: TileComputer::new(store, kernels),
                rows: Vec::new(),
            }),
        }
    }

    /// Computes each layer's grid as `groups` expert groups x `strips` block strips, one after the
    /// other, as that many nodes would.
    ///
    /// # Errors
    /// The grid cannot be cut that way.
    pub fn with_cut(
        store: ExpertStore,
        kernels: Kernels,
        groups: u32,
        strips: u32,
    ) -> Result<Self, TileError> {
        let rects = store.grid().cut(groups, strips)?;
        let cover = Cover::new(store.grid(), rects.iter().map(std::slice::from_ref))?;
        Ok(LocalBackend {
            cut: Some(Cut { rects, cover }),
            ..Self::new(store, kernels)
        })
    }
}

impl ExpertBackend for LocalBackend {
    fn begin(&self, batch: Arc<ExpertBatch>) -> Result<Box<dyn PendingExperts + '_>, ExpertError> {
        Ok(Box::new(PendingLocal {
            backend: self,
            batch,
        }))
    }
}

/// A batch that is computed when it is finished.
struct PendingLocal<'a> {
    backend: &'a LocalBackend,
    batch: Arc<ExpertBatch>,
}

impl PendingExperts for PendingLocal<'_> {
    fn finish(self: Box<Self>, _: &dyn Fn() -> bool, out: &mut [f32]) -> Result<(), ExpertError> {
        let PendingLocal { backend, batch } = *self;
        // Whatever a panic left in the buffers is overwritten.
        let mut buffers = backend
            .buffers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Buffers { computer, rows } = &mut *buffers;
        let count = backend.cut.as_ref().map_or(1, |cut| cut.rects.len());
        rows.resize_with(count, Vec::new);
        let Some(Cut { rects, cover }) = &backend.cut else {
            // The whole grid is one subtree, so its rows are the final sums, one per token.
            let whole = [computer.store().grid().whole()];
            computer.compute(&batch, &whole, &mut rows[0])?;
            out.copy_from_slice(&rows[0]);
            return Ok(());
        };
        for (rect, rows) in rects.iter().zip(rows.iter_mut()) {
            computer.compute(&batch, std::slice::from_ref(rect), rows)?;
        }
        let map = cover.row_map(&batch, 0..batch.tokens);
        cover.combine(&map, rows, backend.hidden, out);
        Ok(())
    }
}
