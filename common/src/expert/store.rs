//! The mapped expert tensors of all layers.

use std::ops::Range;

use super::compute::compute_rect;
use super::weights::Weights;
use super::{BatchError, ExpertBatch, ExpertScratch};
use crate::kernels::{Kernels, Matrix, ShapeError};
use crate::model::{HyperParams, ModelTensors};
use crate::quant::GgmlType;
use crate::tiles::{BLOCK_WIDTH, Grid, TileRect};

/// All experts of one projection of one layer, stacked.
#[derive(Clone, Debug)]
pub(super) struct ExpertMatrices {
    weights: Weights,
    rows: usize,
    cols: usize,
    bytes_each: usize,
}

impl ExpertMatrices {
    fn new(weights: Weights, rows: usize, cols: usize) -> Result<Self, StoreError> {
        let name = weights.name().to_owned();
        let error = |reason: String| StoreError {
            tensor: name.clone(),
            reason,
        };
        let ty = weights.ty();
        let row_bytes = ty
            .row_bytes(cols as u64)
            .ok_or_else(|| error(format!("rows of {cols} are no whole number of {ty} blocks")))?;
        let matrices = ExpertMatrices {
            weights,
            rows,
            cols,
            bytes_each: row_bytes as usize * rows,
        };
        matrices.expert(0).map_err(|e| error(e.to_string()))?;
        Ok(matrices)
    }

    pub(super) fn ty(&self) -> GgmlType {
        self.weights.ty()
    }

    pub(super) fn expert(&self, expert: u32) -> Result<Matrix<'_>, BatchError> {
        let start = expert as usize * self.bytes_each;
        let bytes = self
            .weights
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
            tensor: self.weights.name().to_owned(),
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

impl ExpertLayer {
    fn new(
        hidden: usize,
        width: usize,
        clamp: f32,
        [gate, up, down]: [Weights; 3],
    ) -> Result<Self, StoreError> {
        let down = ExpertMatrices::new(down, hidden, width)?;
        debug_assert!(BLOCK_WIDTH.is_multiple_of(down.ty().block_elements()));
        Ok(ExpertLayer {
            gate: ExpertMatrices::new(gate, width, hidden)?,
            up: ExpertMatrices::new(up, width, hidden)?,
            down,
            clamp,
            hidden,
            width,
        })
    }
}

/// Sizes of experts that come from no model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    pub layers: usize,
    pub hidden: usize,
    /// Inner width.
    pub width: usize,
    pub experts: usize,
    /// Experts that a token uses.
    pub used: usize,
    /// Format of gate, up and down.
    pub ty: GgmlType,
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
                let tensors = [&t.gate_exps, &t.up_exps, &t.down_exps];
                ExpertLayer::new(hidden, width, clamp, tensors.map(Weights::mapped))
            })
            .collect::<Result<_, StoreError>>()?;
        Ok(ExpertStore {
            layers,
            grid: Grid::of(hp.experts, width),
            hidden,
            used: hp.experts_used,
        })
    }

    /// Experts without a clamp in anonymous memory (in huge pages where the system grants them),
    /// for measurements without a model file. `fill` writes the bytes of one expert's projection.
    ///
    /// # Errors
    /// There is not that much memory, or rows are no whole number of blocks.
    pub fn in_memory(
        shape: ExpertShape,
        fill: impl Fn(&mut [u8]) + Sync,
    ) -> Result<Self, StoreError> {
        let ExpertShape { hidden, width, .. } = shape;
        let layer = |_| {
            let make = |name| Weights::in_memory(name, shape, &fill);
            let weights = [make("gate")?, make("up")?, make("down")?];
            ExpertLayer::new(hidden, width, f32::INFINITY, weights)
        };
        Ok(ExpertStore {
            layers: (0..shape.layers).map(layer).collect::<Result<_, _>>()?,
            grid: Grid::of(shape.experts, width),
            hidden,
            used: shape.used,
        })
    }

    /// The bytes of a layer's gate, up and down experts.
    ///
    /// # Panics
    /// `layer` is not a layer.
    #[must_use]
    pub fn weights(&self, layer: usize) -> [&[u8]; 3] {
        let ExpertLayer { gate, up, down, .. } = &self.layers[layer];
        [gate, up, down].map(|m| m.weights.bytes())
    }

    /// Inner width of an expert.
    #[must_use]
    pub fn width(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.width)
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
