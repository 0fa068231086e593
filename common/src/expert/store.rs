//! The mapped expert tensors of all layers.

use std::ops::Range;

use super::compute::compute_rect;
use super::{BatchError, ExpertBatch, ExpertScratch};
use crate::gguf::Tensor;
use crate::kernels::{Kernels, Matrix, ShapeError};
use crate::model::{HyperParams, ModelTensors};
use crate::quant::GgmlType;
use crate::tiles::{BLOCK_WIDTH, Grid, TileRect};

/// All experts of one projection of one layer, stacked.
#[derive(Clone, Debug)]
pub(super) struct ExpertMatrices {
    tensor: Tensor,
    rows: usize,
    cols: usize,
    bytes_each: usize,
}

impl ExpertMatrices {
    fn new(tensor: &Tensor, rows: usize, cols: usize) -> Result<Self, StoreError> {
        let error = |reason: String| StoreError {
            tensor: tensor.name().to_owned(),
            reason,
        };
        let row_bytes = tensor.ty().row_bytes(cols as u64).ok_or_else(|| {
            error(format!(
                "rows of {cols} are no whole number of {} blocks",
                tensor.ty()
            ))
        })?;
        let matrices = ExpertMatrices {
            tensor: tensor.clone(),
            rows,
            cols,
            bytes_each: row_bytes as usize * rows,
        };
        matrices.expert(0).map_err(|e| error(e.to_string()))?;
        Ok(matrices)
    }

    pub(super) fn ty(&self) -> GgmlType {
        self.tensor.ty()
    }

    pub(super) fn expert(&self, expert: u32) -> Result<Matrix<'_>, BatchError> {
        let start = expert as usize * self.bytes_each;
        let bytes = self
            .tensor
            .bytes()
            .get(start..start + self.bytes_each)
            .unwrap_or_default();
        Matrix::new(self.ty(), self.rows, self.cols, bytes).map_err(|e| self.error(&e))
    }

    pub(super) fn strip<'m>(
        &self,
        matrix: &Matrix<'m>,
        columns: Range<usize>,
    ) -> Result<Matrix<'m>, BatchError> {
        matrix.column_strip(columns).map_err(|e| self.error(&e))
    }

    fn error(&self, error: &ShapeError) -> BatchError {
        BatchError::Weights {
            tensor: self.tensor.name().to_owned(),
            reason: error.to_string(),
        }
    }
}

/// One layer's routed experts.
#[derive(Clone, Debug)]
pub(super) struct ExpertLayer {
    pub(super) gate: ExpertMatrices,
    pub(super) up: ExpertMatrices,
    pub(super) down: ExpertMatrices,
    pub(super) clamp: f32,
    pub(super) hidden: usize,
    /// Inner width.
    pub(super) width: usize,
}

/// The routed experts of a model, mapped.
#[derive(Clone, Debug)]
pub struct ExpertStore {
    layers: Vec<ExpertLayer>,
    grid: Grid,
    hidden: usize,
    used: usize,
}

impl ExpertStore {
    /// # Errors
    /// An expert tensor's rows or tiles are no whole number of blocks.
    pub fn new(hp: &HyperParams, tensors: &ModelTensors) -> Result<Self, StoreError> {
        let (hidden, width) = (hp.hidden, hp.expert_width);
        let layers = tensors
            .layers
            .iter()
            .zip(&hp.clamp_routed)
            .map(|(t, &clamp)| {
                let down = ExpertMatrices::new(&t.down_exps, hidden, width)?;
                debug_assert!(BLOCK_WIDTH.is_multiple_of(down.ty().block_elements()));
                Ok(ExpertLayer {
                    gate: ExpertMatrices::new(&t.gate_exps, width, hidden)?,
                    up: ExpertMatrices::new(&t.up_exps, width, hidden)?,
                    down,
                    clamp,
                    hidden,
                    width,
                })
            })
            .collect::<Result<_, StoreError>>()?;
        Ok(ExpertStore {
            layers,
            grid: Grid::of(hp.experts, width),
            hidden,
            used: hp.experts_used,
        })
    }

    #[must_use]
    pub fn grid(&self) -> Grid {
        self.grid
    }

    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    #[must_use]
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Experts that the model's router chooses for a token.
    #[must_use]
    pub fn experts_used(&self) -> usize {
        self.used
    }

    /// Computes a batch over `rects` on the current rayon pool: the rows of
    /// [`ExpertBatch::reply_rows`], `hidden` floats each, into `out`. Returns how many
    /// (token, expert, block) products that were.
    ///
    /// # Errors
    /// The batch does not fit the model, or a rectangle reaches outside of the grid.
    pub fn compute(
        &self,
        kernels: Kernels,
        batch: &ExpertBatch,
        rects: &[TileRect],
        scratch: &mut ExpertScratch,
        out: &mut Vec<f32>,
    ) -> Result<u64, BatchError> {
        batch.check(self.layers(), self.grid, self.hidden, self.used)?;
        for &rect in rects {
            rect.check(self.grid)
                .map_err(|_| BatchError::NotHeld { rect })?;
        }
        out.clear();
        let layer = &self.layers[batch.layer];
        let mut products = 0;
        for &rect in rects {
            products += compute_rect(kernels, self.grid, layer, batch, rect, scratch, out)?;
        }
        Ok(products)
    }
}

/// An expert tensor that can't be computed with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tensor {tensor}: {reason}")]
pub struct StoreError {
    pub tensor: String,
    pub reason: String,
}
