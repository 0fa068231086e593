//! Routed experts from the coordinator's own model file: the last resort of a cluster.

use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use ds4_common::expert::{ExpertBatch, ExpertStore, TileComputer};
use ds4_common::kernels::Kernels;
use ds4_common::tiles::TileRect;

use crate::engine::ExpertError;

/// Somebody in this process who can compute any tile.
pub trait OwnExperts: Send + Sync + fmt::Debug {
    /// Replaces `out` by the rows that a holder of `rect` returns for the tokens in `tokens`, on
    /// the current rayon pool.
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

/// [`OwnExperts`] over a mapped file, which is read only when it is needed.
#[derive(Debug)]
pub struct OwnFile(Mutex<TileComputer>);

impl OwnFile {
    #[must_use]
    pub fn new(store: ExpertStore, kernels: Kernels) -> Self {
        OwnFile(Mutex::new(TileComputer::new(store, kernels)))
    }
}

impl OwnExperts for OwnFile {
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
        // Buffers that a panic left behind are overwritten like any others.
        let mut computer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        computer.compute(batch, &[rect], out)?;
        Ok(())
    }
}
