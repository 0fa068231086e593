//! Weights, kernels and buffers that together compute tiles: on a node, in the coordinator's
//! process, and as the coordinator's local fallback.

use super::{BatchError, ExpertBatch, ExpertScratch, ExpertStore};
use crate::kernels::Kernels;
use crate::tiles::TileRect;

/// Computes tiles of a store with kernels that were chosen once, in buffers that it keeps between
/// calls.
#[derive(Debug)]
pub struct TileComputer {
    store: ExpertStore,
    kernels: Kernels,
    scratch: ExpertScratch,
}

impl TileComputer {
    /// Allocates nothing until the first batch.
    #[must_use]
    pub fn new(store: ExpertStore, kernels: Kernels) -> Self {
        TileComputer {
            store,
            kernels,
            scratch: ExpertScratch::default(),
        }
    }

    /// Computes a batch as [`ExpertStore::compute`] does.
    ///
    /// # Errors
    /// As [`ExpertStore::compute`].
    pub fn compute(
        &mut self,
        batch: &ExpertBatch,
        rects: &[TileRect],
        out: &mut Vec<f32>,
    ) -> Result<u64, BatchError> {
        self.store
            .compute(self.kernels, batch, rects, &mut self.scratch, out)
    }

    /// Frees the buffers; the next batch allocates them again. Every expert's buffers have the
    /// size of the largest batch that it has computed, which differs from expert to expert, so
    /// that all of them together grow far beyond the need of one batch.
    pub fn release(&mut self) {
        self.scratch = ExpertScratch::default();
    }

    /// The weights.
    #[must_use]
    pub fn store(&self) -> &ExpertStore {
        &self.store
    }

    /// The kernels that multiply the weights.
    #[must_use]
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }
}
