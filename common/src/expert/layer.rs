//! The weights of one layer's experts, or of a rectangle of them, as matrices.

use std::ops::Range;

use super::BatchError;
use super::weights::{ExpertBytes, StoreError};
use crate::kernels::{Matrix, ShapeError};
use crate::quant::{GgmlType, Layout};
use crate::tiles::{BLOCK_WIDTH, Span, TileRect};

/// Some experts of one projection of one layer, stacked.
#[derive(Clone, Debug)]
pub(super) struct ExpertMatrices {
    weights: ExpertBytes,
    /// The expert that the first matrix is of.
    first: u32,
    rows: usize,
    cols: usize,
    bytes_each: usize,
}

impl ExpertMatrices {
    fn new(weights: ExpertBytes, first: u32, rows: usize, cols: usize) -> Result<Self, StoreError> {
        let ty = weights.ty();
        let row_bytes = ty.row_bytes(cols as u64).ok_or_else(|| StoreError {
            tensor: weights.name().to_owned(),
            reason: format!("rows of {cols} values are not a whole number of {ty} blocks"),
        })?;
        let matrices = ExpertMatrices {
            weights,
            first,
            rows,
            cols,
            bytes_each: row_bytes as usize * rows,
        };
        matrices.check()?;
        Ok(matrices)
    }

    /// Refuses bytes that are not matrices of this shape in their layout.
    fn check(&self) -> Result<(), StoreError> {
        let checked = self.expert(self.first).map(|_| ());
        checked.map_err(|error| StoreError {
            tensor: self.weights.name().to_owned(),
            reason: error.to_string(),
        })
    }

    /// Weight type of the matrices.
    pub(super) fn ty(&self) -> GgmlType {
        self.weights.ty()
    }

    /// The matrix of an expert that is held here.
    pub(super) fn expert(&self, expert: u32) -> Result<Matrix<'_>, BatchError> {
        let start = expert.wrapping_sub(self.first) as usize * self.bytes_each;
        let bytes = self
            .weights
            .bytes()
            .get(start..start.saturating_add(self.bytes_each))
            .unwrap_or_default();
        let layout = self.weights.layout();
        Matrix::stored(layout, self.ty(), self.rows, self.cols, bytes).map_err(|e| self.error(&e))
    }

    /// Some columns of an expert's matrix.
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

/// One rectangle of a layer's routed experts that lies together in its file: a whole layer, or a
/// part of it.
#[derive(Clone, Debug)]
pub(super) struct ExpertLayer {
    /// The tiles that are here.
    rect: TileRect,
    pub(super) gate: ExpertMatrices,
    pub(super) up: ExpertMatrices,
    pub(super) down: ExpertMatrices,
    pub(super) clamp: f32,
    pub(super) hidden: usize,
    /// Inner width of an expert, held or not.
    width: usize,
}

/// What the parts of a layer have in common.
#[derive(Clone, Copy)]
pub(super) struct LayerSizes {
    /// Width of the layer's input.
    pub(super) hidden: usize,
    /// Inner width of an expert.
    pub(super) width: usize,
    /// Bound of gate and up before they multiply.
    pub(super) clamp: f32,
}

impl ExpertLayer {
    pub(super) fn new(
        sizes: LayerSizes,
        rect: TileRect,
        [gate, up, down]: [ExpertBytes; 3],
    ) -> Result<Self, StoreError> {
        let LayerSizes {
            hidden,
            width,
            clamp,
        } = sizes;
        let held = rect.blocks.features(width).len();
        let first = rect.experts.start;
        let down = ExpertMatrices::new(down, first, hidden, held)?;
        debug_assert!(BLOCK_WIDTH.is_multiple_of(down.ty().block_elements()));
        Ok(ExpertLayer {
            rect,
            gate: ExpertMatrices::new(gate, first, held, hidden)?,
            up: ExpertMatrices::new(up, first, held, hidden)?,
            down,
            clamp,
            hidden,
            width,
        })
    }

    /// Where the inner features of some held blocks are: rows of gate and up, columns of down.
    pub(super) fn features(&self, blocks: Span) -> Range<usize> {
        let first = self.rect.blocks.features(self.width).start;
        let all = blocks.features(self.width);
        all.start - first..all.end - first
    }

    /// Whether all of `rect` is here.
    pub(super) fn covers(&self, rect: TileRect) -> bool {
        self.rect.covers(rect)
    }

    /// Order of the weights.
    pub(super) fn layout(&self) -> Layout {
        self.gate.weights.layout()
    }

    /// Reads the same bytes in another order.
    pub(super) fn reinterpret(&mut self, layout: Layout) -> Result<(), StoreError> {
        for matrices in [&mut self.gate, &mut self.up, &mut self.down] {
            matrices.weights.reinterpret(layout);
            matrices.check()?;
        }
        Ok(())
    }

    /// The bytes of gate, up and down.
    pub(super) fn weights(&self) -> [&[u8]; 3] {
        [&self.gate, &self.up, &self.down].map(|m| m.weights.bytes())
    }
}
