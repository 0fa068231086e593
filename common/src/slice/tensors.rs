//! Which tensors a slice of given tiles has.

use std::fmt;
use std::ops::Range;

use blake3::Hash;

use crate::model::HyperParams;
use crate::quant::{GgmlType, Layout};
use crate::tiles::{Holdings, TileRect};

/// Most rectangles of all layers together that a slice may have.
pub const MAX_PARTS: usize = 1 << 14;

/// One of the three matrices of an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Projection {
    /// Rows of inner features, whose products pass through SiLU.
    Gate,
    /// Rows of inner features, whose products multiply those of gate.
    Up,
    /// Columns of inner features: back to the hidden width.
    Down,
}

impl Projection {
    /// In the order in which a slice stores them.
    pub const ALL: [Projection; 3] = [Projection::Gate, Projection::Up, Projection::Down];

    fn name(self) -> &'static str {
        match self {
            Projection::Gate => "gate",
            Projection::Up => "up",
            Projection::Down => "down",
        }
    }
}

/// One tensor of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceTensor {
    /// Name in the file, which states layer, projection and rectangle.
    pub name: String,
    /// Layer of the model, from 0.
    pub layer: usize,
    /// The tiles that it holds.
    pub rect: TileRect,
    /// The matrix that it is of each expert.
    pub projection: Projection,
    /// Fastest first.
    pub dims: [u64; 3],
    /// Weight type.
    pub ty: GgmlType,
    /// Order of the bytes of each expert's matrix.
    pub layout: Layout,
    /// From the start of the file.
    pub offset: u64,
    /// Bytes of the data.
    pub bytes: u64,
    /// `None` while the tensor is not there.
    pub hash: Option<Hash>,
}

/// A tensor without its place in a file.
pub(super) struct Shaped {
    pub(super) name: String,
    pub(super) layer: usize,
    pub(super) rect: TileRect,
    pub(super) projection: Projection,
    pub(super) dims: [u64; 3],
    pub(super) ty: GgmlType,
}

/// The types of a layer's gate, up and down experts.
pub(super) type LayerTypes = [GgmlType; 3];

/// All tensors of a slice in file order; `types` has one entry per layer, `None` where nothing is
/// held.
pub(super) fn shaped(
    hp: &HyperParams,
    holdings: &Holdings,
    types: &[Option<LayerTypes>],
) -> Vec<Shaped> {
    let mut all = Vec::new();
    for (layer, types) in types.iter().enumerate() {
        let Some(types) = types else { continue };
        for &rect in holdings.rects(layer) {
            for (projection, &ty) in Projection::ALL.into_iter().zip(types) {
                all.push(Shaped {
                    name: name(layer, projection, rect),
                    layer,
                    rect,
                    projection,
                    dims: dims(hp, projection, rect),
                    ty,
                });
            }
        }
    }
    all
}

/// `blk.3.ffn_gate_exps.e0-128.b2-4.weight`.
pub(super) fn name(layer: usize, projection: Projection, rect: TileRect) -> String {
    let TileRect { experts, blocks } = rect;
    format!(
        "blk.{layer}.ffn_{}_exps.e{}-{}.b{}-{}.weight",
        projection.name(),
        experts.start,
        experts.end,
        blocks.start,
        blocks.end
    )
}

/// The inner features of a rectangle's blocks.
pub(super) fn features(hp: &HyperParams, rect: TileRect) -> Range<u64> {
    let features = rect.blocks.features(hp.expert_width);
    features.start as u64..features.end as u64
}

fn dims(hp: &HyperParams, projection: Projection, rect: TileRect) -> [u64; 3] {
    let features = features(hp, rect);
    let (hidden, width) = (hp.hidden as u64, features.end - features.start);
    let experts = rect.experts.len().into();
    match projection {
        Projection::Gate | Projection::Up => [hidden, width, experts],
        Projection::Down => [width, hidden, experts],
    }
}

impl fmt::Display for SliceTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
