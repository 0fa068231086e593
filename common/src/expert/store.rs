//! The mapped expert tensors of all layers.

use std::ops::Range;

use super::compute::compute_rect;
use super::weights::Weights;
use super::{BatchError, ExpertBatch, ExpertScratch};
use crate::kernels::{Kernels, Matrix, ShapeError};
use crate::model::{HyperParams, ModelTensors};
use crate::quant::{GgmlType, Layout};
use crate::slice::Slice;
use crate::tiles::{BLOCK_WIDTH, Grid, Span, TileRect};

/// Some experts of one projection of one layer, stacked.
#[derive(Clone, Debug)]
pub(super) struct ExpertMatrices {
    weights: Weights,
    /// The expert that the first matrix is of.
    first: u32,
    rows: usize,
    cols: usize,
    bytes_each: usize,
}

impl ExpertMatrices {
    fn new(weights: Weights, first: u32, rows: usize, cols: usize) -> Result<Self, StoreError> {
        let ty = weights.ty();
        let row_bytes = ty.row_bytes(cols as u64).ok_or_else(|| StoreError {
            tensor: weights.name().to_owned(),
            reason: format!("rows of {cols} are no whole number of {ty} blocks"),
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

    fn check(&self) -> Result<(), StoreError> {
        let checked = self.expert(self.first).map(|_| ());
        checked.map_err(|error| StoreError {
            tensor: self.weights.name().to_owned(),
            reason: error.to_string(),
        })
    }

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

/// One rectangle of a layer's routed experts that lies together: a whole layer, or a part of it.
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
struct Sizes {
    hidden: usize,
    width: usize,
    clamp: f32,
}

impl ExpertLayer {
    fn new(
        sizes: Sizes,
        rect: TileRect,
        [gate, up, down]: [Weights; 3],
    ) -> Result<Self, StoreError> {
        let Sizes {
            hidden,
            width,
            clamp,
        } = sizes;
        let held = inner_features(rect.blocks, width).len();
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
        let first = inner_features(self.rect.blocks, self.width).start;
        let all = inner_features(blocks, self.width);
        all.start - first..all.end - first
    }

    fn weights(&self) -> [&[u8]; 3] {
        [&self.gate, &self.up, &self.down].map(|m| m.weights.bytes())
    }
}

/// The inner features of blocks; the last block of an expert may be narrow.
fn inner_features(blocks: Span, width: usize) -> Range<usize> {
    let at = |block: u32| block as usize * BLOCK_WIDTH;
    at(blocks.start)..at(blocks.end).min(width)
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
    pub experts_used: usize,
    /// Format of gate, up and down.
    pub ty: GgmlType,
    /// Order of their bytes.
    pub layout: Layout,
}

/// The routed experts of a model, or some tiles of them, mapped.
#[derive(Clone, Debug)]
pub struct ExpertStore {
    /// The parts of every layer, none where nothing is held.
    layers: Vec<Vec<ExpertLayer>>,
    grid: Grid,
    hidden: usize,
    width: usize,
    experts_used: usize,
}

impl ExpertStore {
    /// All tiles of a whole model.
    ///
    /// # Errors
    /// An expert tensor's rows or tiles are no whole number of blocks.
    pub fn new(hp: &HyperParams, tensors: &ModelTensors) -> Result<Self, StoreError> {
        let whole = Grid::of(hp.experts, hp.expert_width).whole();
        let layers = tensors
            .layers
            .iter()
            .enumerate()
            .map(|(layer, t)| {
                let tensors = [&t.gate_exps, &t.up_exps, &t.down_exps];
                let weights = tensors.map(|tensor| Weights::mapped(tensor, Layout::Plain));
                Ok(vec![ExpertLayer::new(sizes(hp, layer), whole, weights)?])
            })
            .collect::<Result<_, StoreError>>()?;
        Ok(Self::of(hp, layers))
    }

    /// The tiles of a slice.
    ///
    /// # Errors
    /// A tensor's rows are no whole number of blocks, or the file is gone.
    pub fn from_slice(slice: &Slice) -> Result<Self, StoreError> {
        let head = slice.head();
        let hp = head.hyper_params();
        let mut layers = vec![Vec::new(); hp.layers];
        // Three tensors a part, of one layer and rectangle: the head was checked.
        let (parts, _) = head.tensors().as_chunks::<3>();
        for part in parts {
            let [gate, up, down] = part.each_ref().map(|t| {
                let tensor = slice.tensor(t).map_err(|e| StoreError {
                    tensor: t.name.clone(),
                    reason: e.to_string(),
                })?;
                Ok(Weights::mapped(&tensor, t.layout))
            });
            let (layer, rect) = (part[0].layer, part[0].rect);
            layers[layer].push(ExpertLayer::new(
                sizes(hp, layer),
                rect,
                [gate?, up?, down?],
            )?);
        }
        Ok(Self::of(hp, layers))
    }

    fn of(hp: &HyperParams, layers: Vec<Vec<ExpertLayer>>) -> Self {
        ExpertStore {
            layers,
            grid: Grid::of(hp.experts, hp.expert_width),
            hidden: hp.hidden,
            width: hp.expert_width,
            experts_used: hp.experts_used,
        }
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
        let grid = Grid::of(shape.experts, width);
        let clamp = f32::INFINITY;
        let layer = |_| {
            let make = |name| Weights::in_memory(name, shape, &fill);
            let weights = [make("gate")?, make("up")?, make("down")?];
            let sizes = Sizes {
                hidden,
                width,
                clamp,
            };
            Ok(vec![ExpertLayer::new(sizes, grid.whole(), weights)?])
        };
        Ok(ExpertStore {
            layers: (0..shape.layers)
                .map(layer)
                .collect::<Result<_, StoreError>>()?,
            grid,
            hidden,
            width,
            experts_used: shape.experts_used,
        })
    }

    /// The same bytes in memory, read in another order: other weights, for measurements.
    ///
    /// # Errors
    /// Matrices of this shape have no such order.
    pub fn reinterpreted(&self, layout: Layout) -> Result<Self, StoreError> {
        let mut other = self.clone();
        for part in other.layers.iter_mut().flatten() {
            for matrices in [&mut part.gate, &mut part.up, &mut part.down] {
                matrices.weights.reinterpret(layout);
                matrices.check()?;
            }
        }
        Ok(other)
    }

    /// Order of the weights, where all have the same.
    #[must_use]
    pub fn layout(&self) -> Layout {
        let mut parts = self.layers.iter().flatten();
        let first = parts.next().map(|part| part.gate.weights.layout());
        first.unwrap_or_default()
    }

    /// The bytes of a layer's gate, up and down experts, part by part.
    ///
    /// # Panics
    /// `layer` is not a layer.
    pub fn weights(&self, layer: usize) -> impl Iterator<Item = &[u8]> {
        self.layers[layer].iter().flat_map(ExpertLayer::weights)
    }

    /// Inner width of an expert.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
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
        self.experts_used
    }

    /// Computes a batch over `rects` on the current rayon pool: the rows of
    /// [`ExpertBatch::reply_rows`], `hidden` floats each, into `out`. Returns how many
    /// (token, expert, block) products that were.
    ///
    /// # Errors
    /// The batch does not fit the model, or no single part holds all of a rectangle.
    pub fn compute(
        &self,
        kernels: Kernels,
        batch: &ExpertBatch,
        rects: &[TileRect],
        scratch: &mut ExpertScratch,
        out: &mut Vec<f32>,
    ) -> Result<u64, BatchError> {
        batch.check(self.layers(), self.grid, self.hidden, self.experts_used)?;
        let parts = rects
            .iter()
            .map(|&rect| self.part(batch.layer, rect))
            .collect::<Result<Vec<_>, _>>()?;
        out.clear();
        let mut products = 0;
        for (&rect, part) in rects.iter().zip(parts) {
            products += compute_rect(kernels, self.grid, part, batch, rect, scratch, out)?;
        }
        Ok(products)
    }

    /// The part of a layer that holds all of `rect`.
    fn part(&self, layer: usize, rect: TileRect) -> Result<&ExpertLayer, BatchError> {
        rect.check(self.grid)
            .ok()
            .and_then(|()| self.layers[layer].iter().find(|p| p.rect.covers(rect)))
            .ok_or(BatchError::NotHeld { rect })
    }
}

fn sizes(hp: &HyperParams, layer: usize) -> Sizes {
    Sizes {
        hidden: hp.hidden,
        width: hp.expert_width,
        clamp: hp.clamp_routed[layer],
    }
}

/// An expert tensor that can't be computed with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tensor {tensor}: {reason}")]
pub struct StoreError {
    pub tensor: String,
    pub reason: String,
}
