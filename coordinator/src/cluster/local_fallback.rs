//! The local fallback: routed experts computed from the coordinator's own model file where no
//! replica on a node can be reached.

use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use ds4_common::expert::{ExpertBatch, ExpertStore, TileComputer};
use ds4_common::kernels::Kernels;
use ds4_common::tiles::TileRect;

use crate::engine::ExpertError;

/// Computes any tile in this process.
pub trait FallbackExperts: Send + Sync + fmt::Debug {
    /// Replaces `out` with the rows that a node returns for `rect` and the tokens in `tokens`
    /// (`rows x hidden`), on the current rayon pool.
    ///
    /// # Errors
    /// The batch does not fit the model.
    fn compute(
        &self,
        batch: &ExpertBatch,
        tokens: Range<usize>,
        rect: TileRect,
        out: &mut Vec<f32>,
    ) -> Result<(), ExpertError>;
}

/// Routed experts over the coordinator's mapping of the model file, whose pages are read only when
/// they are needed. One computation at a time.
#[derive(Debug)]
pub struct LocalExperts(Mutex<TileComputer>);

impl LocalExperts {
    /// Computes the experts of `store` with `kernels`.
    #[must_use]
    pub fn new(store: ExpertStore, kernels: Kernels) -> Self {
        LocalExperts(Mutex::new(TileComputer::new(store, kernels)))
    }
}

impl FallbackExperts for LocalExperts {
    fn compute(
        &self,
        batch: &ExpertBatch,
        tokens: Range<usize>,
        rect: TileRect,
        out: &mut Vec<f32>,
    ) -> Result<(), ExpertError> {
        let part;
        let batch = if tokens == (0..batch.tokens) {
            batch
        } else {
            part = batch.part(tokens);
            &part
        };
        // Whatever a panic left in the buffers is overwritten.
        let mut computer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        computer.compute(batch, &[rect], out)?;
        Ok(())
    }
}
