//! Routed experts computed in this process, from the coordinator's own mapping.

use std::sync::{Arc, Mutex, PoisonError};

use ds4_common::expert::{ExpertBatch, ExpertStore, TileComputer};
use ds4_common::kernels::Kernels;
use ds4_common::tiles::{TileError, TileRect};

use super::combine::Cover;
use crate::engine::{ExpertBackend, ExpertError, PendingExperts};

/// An [`ExpertBackend`] on the caller's own threads: the current rayon pool of `finish`.
#[derive(Debug)]
pub struct LocalBackend {
    hidden: usize,
    /// `None` computes the whole grid at once, which leaves nothing to add.
    cut: Option<Cut>,
    buffers: Mutex<Buffers>,
}

#[derive(Debug)]
struct Cut {
    parts: Vec<TileRect>,
    cover: Cover,
}

#[derive(Debug)]
struct Buffers {
    computer: TileComputer,
    /// Of each part.
    rows: Vec<Vec<f32>>,
}

impl LocalBackend {
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

    /// Computes the grid in groups x strips, one after the other, as that many nodes would.
    ///
    /// # Errors
    /// The grid has no such cut.
    pub fn with_cut(
        store: ExpertStore,
        kernels: Kernels,
        groups: u32,
        strips: u32,
    ) -> Result<Self, TileError> {
        let parts = store.grid().cut(groups, strips)?;
        let cover = Cover::new(store.grid(), parts.iter().map(std::slice::from_ref))?;
        let cut = Some(Cut { parts, cover });
        Ok(LocalBackend {
            cut,
            ..Self::new(store, kernels)
        })
    }
}

impl ExpertBackend for LocalBackend {
    fn begin(&self, batch: Arc<ExpertBatch>) -> Result<Box<dyn PendingExperts + '_>, ExpertError> {
        Ok(Box::new(Pending {
            backend: self,
            batch,
        }))
    }
}

struct Pending<'a> {
    backend: &'a LocalBackend,
    batch: Arc<ExpertBatch>,
}

impl PendingExperts for Pending<'_> {
    fn finish(self: Box<Self>, _: &dyn Fn() -> bool, out: &mut [f32]) -> Result<(), ExpertError> {
        let Pending { backend, batch } = *self;
        // Buffers that a panic left behind are overwritten like any others.
        let mut buffers = backend
            .buffers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Buffers { computer, rows } = &mut *buffers;
        let parts = backend.cut.as_ref().map_or(1, |cut| cut.parts.len());
        rows.resize_with(parts, Vec::new);
        let Some(Cut { parts, cover }) = &backend.cut else {
            // The whole grid is one subtree, so its rows are the final sums, one a token.
            let whole = [computer.store().grid().whole()];
            computer.compute(&batch, &whole, &mut rows[0])?;
            out.copy_from_slice(&rows[0]);
            return Ok(());
        };
        for (part, rows) in parts.iter().zip(rows.iter_mut()) {
            computer.compute(&batch, std::slice::from_ref(part), rows)?;
        }
        let map = cover.rows(&batch, 0..batch.tokens);
        cover.combine(&map, rows, backend.hidden, out);
        Ok(())
    }
}
