//! The mapped expert tensors of all layers.

use super::compute::compute_rect;
use super::layer::{ExpertLayer, LayerSizes};
use super::weights::{ExpertBytes, ExpertShape, StoreError};
use super::{BatchError, ExpertBatch, ExpertScratch, MoeShape};
use crate::kernels::Kernels;
use crate::model::{HyperParams, ModelTensors};
use crate::quant::Layout;
use crate::slice::Slice;
use crate::tiles::{Grid, TileRect};

/// The routed experts of a model, or some tiles of them, mapped. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ExpertStore {
    /// The parts of each layer; none where nothing is held.
    layers: Vec<Vec<ExpertLayer>>,
    shape: MoeShape,
    /// Inner width of an expert.
    width: usize,
}

impl ExpertStore {
    /// All tiles of a whole model.
    ///
    /// # Errors
    /// The rows or tiles of an expert tensor are not a whole number of blocks.
    pub fn new(hp: &HyperParams, tensors: &ModelTensors) -> Result<Self, StoreError> {
        let whole = Grid::of(hp.experts, hp.expert_width).whole();
        let layers = tensors
            .layers
            .iter()
            .enumerate()
            .map(|(layer, t)| {
                let tensors = [&t.gate_exps, &t.up_exps, &t.down_exps];
                let weights = tensors.map(|tensor| ExpertBytes::mapped(tensor, Layout::Plain));
                Ok(vec![ExpertLayer::new(sizes(hp, layer), whole, weights)?])
            })
            .collect::<Result<_, StoreError>>()?;
        Ok(Self::of(hp, layers))
    }

    /// The tiles of a slice.
    ///
    /// # Errors
    /// The rows of a tensor are not a whole number of blocks, or the file cannot be mapped.
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
                Ok(ExpertBytes::mapped(&tensor, t.layout))
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
            shape: MoeShape::of(hp),
            width: hp.expert_width,
        }
    }

    /// Experts without a clamp in anonymous memory (in huge pages where the system grants them),
    /// for measurements without a model file. `fill` writes the bytes of one projection of one
    /// expert.
    ///
    /// # Errors
    /// The memory cannot be allocated, or rows are not a whole number of blocks.
    pub fn in_memory(
        shape: ExpertShape,
        fill: impl Fn(&mut [u8]) + Sync,
    ) -> Result<Self, StoreError> {
        let ExpertShape { hidden, width, .. } = shape;
        let grid = Grid::of(shape.experts, width);
        let clamp = f32::INFINITY;
        let layer = |_| {
            let make = |name| ExpertBytes::in_memory(name, shape, &fill);
            let weights = [make("gate")?, make("up")?, make("down")?];
            let sizes = LayerSizes {
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
            shape: MoeShape {
                layers: shape.layers,
                hidden,
                experts_used: shape.experts_used,
                grid,
            },
            width,
        })
    }

    /// The same bytes, read in another order: other weights, for measurements.
    ///
    /// # Errors
    /// Matrices of this shape cannot be stored in this order.
    pub fn reinterpreted(&self, layout: Layout) -> Result<Self, StoreError> {
        let mut other = self.clone();
        for part in other.layers.iter_mut().flatten() {
            part.reinterpret(layout)?;
        }
        Ok(other)
    }

    /// Order of the weights of gate; of the first part, where parts differ.
    #[must_use]
    pub fn layout(&self) -> Layout {
        let mut parts = self.layers.iter().flatten();
        let first = parts.next().map(ExpertLayer::layout);
        first.unwrap_or_default()
    }

    /// The bytes of a layer's gate, up and down experts, part by part.
    ///
    /// # Panics
    /// `layer` is not a layer.
    pub fn weights(&self, layer: usize) -> impl Iterator<Item = &[u8]> {
        self.layers[layer].iter().flat_map(ExpertLayer::weights)
    }

    /// The sizes that batches must have been checked against.
    #[must_use]
    pub fn shape(&self) -> &MoeShape {
        &self.shape
    }

    /// Inner width of an expert, in values.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Experts of a layer x blocks of an expert, held or not.
    #[must_use]
    pub fn grid(&self) -> Grid {
        self.shape.grid
    }

    /// Layers of the model, held or not.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.shape.layers
    }

    /// Width of a layer's input and of a row of the result, in values.
    #[must_use]
    pub fn hidden(&self) -> usize {
        self.shape.hidden
    }

    /// Experts that the model's router chooses for a token.
    #[must_use]
    pub fn experts_used(&self) -> usize {
        self.shape.experts_used
    }

    /// Computes a batch over `rects` on the current rayon pool. Replaces `out` by the rows that
    /// [`ExpertBatch::reply_rows`] counts, `hidden` floats each. Returns the number of expert
    /// block operations: (token, chosen expert, block) triples.
    ///
    /// # Errors
    /// The batch is of a model of another shape, its input has another format than the weights
    /// need, or no single part holds all of a rectangle.
    pub fn compute(
        &self,
        kernels: Kernels,
        batch: &ExpertBatch,
        rects: &[TileRect],
        scratch: &mut ExpertScratch,
        out: &mut Vec<f32>,
    ) -> Result<u64, BatchError> {
        batch.expect_shape(&self.shape)?;
        let parts = rects
            .iter()
            .map(|&rect| self.part(batch.layer, rect))
            .collect::<Result<Vec<_>, _>>()?;
        out.clear();
        let mut expert_block_ops = 0;
        for (&rect, part) in rects.iter().zip(parts) {
            expert_block_ops += compute_rect(kernels, part, batch, rect, scratch, out)?;
        }
        Ok(expert_block_ops)
    }

    /// The part of a layer that holds all of `rect`.
    fn part(&self, layer: usize, rect: TileRect) -> Result<&ExpertLayer, BatchError> {
        rect.check(self.shape.grid)
            .ok()
            .and_then(|()| self.layers[layer].iter().find(|part| part.covers(rect)))
            .ok_or(BatchError::NotHeld { rect })
    }
}

fn sizes(hp: &HyperParams, layer: usize) -> LayerSizes {
    LayerSizes {
        hidden: hp.hidden,
        width: hp.expert_width,
        clamp: hp.clamp_routed[layer],
    }
}
