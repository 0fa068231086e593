//! The sizes of a model's routed experts, against which batches and messages are checked.

use std::fmt;

use crate::model::HyperParams;
use crate::tiles::Grid;

/// The sizes of a model's mixture of experts, equal in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoeShape {
    /// Layers with routed experts, counted from 0.
    pub layers: usize,
    /// Width of a layer's input and of a row of a reply, in values.
    pub hidden: usize,
    /// Experts that the router chooses for a token.
    pub experts_used: usize,
    /// Experts of a layer x blocks of an expert's inner width.
    pub grid: Grid,
}

impl MoeShape {
    /// The shape of the model that `hp` describes.
    #[must_use]
    pub fn of(hp: &HyperParams) -> Self {
        MoeShape {
            layers: hp.layers,
            hidden: hp.hidden,
            experts_used: hp.experts_used,
            grid: Grid::of(hp.experts, hp.expert_width),
        }
    }

    /// Bytes of one row of a reply: `hidden` floats.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.hidden * size_of::<f32>()
    }
}

impl fmt::Display for MoeShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MoeShape {
            layers,
            hidden,
            experts_used,
            grid,
        } = self;
        write!(
            f,
            "{layers} layers, width {hidden}, {experts_used} experts per token and {grid}"
        )
    }
}
