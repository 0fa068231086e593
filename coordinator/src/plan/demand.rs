//! What a model requires of the machines that serve it: bytes, operations and messages.

use std::sync::Arc;

use ds4_common::model::{Amount, ExpertBudget, Fingerprint, HyperParams, WeightBudget};
use ds4_common::quant::{ActivationFormat, GgmlType};
use ds4_common::tiles::{BLOCK_WIDTH, Grid, TileRect};

/// A model as the planner sees it.
#[derive(Clone, Debug)]
pub struct Demand {
    /// The model's name, for people.
    pub name: String,
    /// Identifies the weights; absent if the plan is made without a model file.
    pub fingerprint: Option<Fingerprint>,
    /// The tiles of one layer.
    pub grid: Grid,
    /// Values of a layer's input, and of each row of a reply.
    pub hidden: usize,
    /// Routed experts for each token.
    pub experts_used: usize,
    /// The layers in order.
    pub layers: Vec<LayerDemand>,
    /// Weights of the output head, which follows the last layer.
    pub head: Amount,
    /// Bytes of the weights that the coordinator keeps in memory: all but the routed experts.
    pub dense_bytes: u64,
}

/// The weights of one layer.
#[derive(Clone, Debug)]
pub struct LayerDemand {
    /// What the coordinator reads before the router has chosen the experts.
    pub dense: Amount,
    /// The shared expert, which the coordinator computes while the nodes work.
    pub shared: Amount,
    /// The routed experts; layers with equal ones share the value.
    pub tiles: Arc<TileCosts>,
}

/// Sizes of the tiles of one layer, which are the same for all its experts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TileCosts {
    /// Bytes of one expert's tile, one entry for each block.
    pub bytes: Vec<u64>,
    /// Number of weights in one expert's tile, one entry for each block.
    pub values: Vec<u64>,
    /// Bytes of one token's activations in a request.
    pub input: u64,
}

impl Demand {
    /// The demand of a model of shape `hp` whose tensors have the sizes of `budget`.
    #[must_use]
    pub fn new(
        name: String,
        fingerprint: Option<Fingerprint>,
        hp: &HyperParams,
        budget: &WeightBudget,
    ) -> Self {
        let mut layers: Vec<LayerDemand> = Vec::with_capacity(budget.layers.len());
        for layer in &budget.layers {
            let tiles = TileCosts::new(hp, &layer.experts);
            let tiles = match layers.last() {
                Some(last) if *last.tiles == tiles => Arc::clone(&last.tiles),
                _ => Arc::new(tiles),
            };
            layers.push(LayerDemand {
                dense: layer.dense,
                shared: layer.shared,
                tiles,
            });
        }
        Demand {
            name,
            fingerprint,
            grid: Grid::of(hp.experts, hp.expert_width),
            hidden: hp.hidden,
            experts_used: hp.experts_used,
            layers,
            head: budget.head,
            dense_bytes: budget.dense_bytes(),
        }
    }

    /// Bytes of all routed experts of all layers.
    #[must_use]
    pub fn routed_bytes(&self) -> u64 {
        let whole = self.grid.whole();
        self.layers.iter().map(|l| l.tiles.rect_bytes(whole)).sum()
    }

    /// Bytes of weights that the coordinator reads for one token.
    #[must_use]
    pub fn dense_bytes_a_token(&self) -> u64 {
        let layer = |l: &LayerDemand| l.dense.bytes + l.shared.bytes;
        self.layers.iter().map(layer).sum::<u64>() + self.head.bytes
    }

    /// Bytes of the routed experts that are read for one token.
    #[must_use]
    pub fn routed_bytes_a_token(&self) -> u64 {
        self.routed_bytes() / u64::from(self.grid.experts) * self.experts_used as u64
    }
}

impl TileCosts {
    fn new(hp: &HyperParams, experts: &ExpertBudget) -> Self {
        // Shapes were checked: rows are whole blocks of their type.
        let row = |ty: GgmlType, values: usize| ty.row_bytes(values as u64).unwrap_or(0);
        let widths = (0..hp.expert_width)
            .step_by(BLOCK_WIDTH)
            .map(|start| BLOCK_WIDTH.min(hp.expert_width - start));
        let rows = row(experts.gate, hp.hidden) + row(experts.up, hp.hidden);
        let tile = |width: usize| rows * width as u64 + row(experts.down, width) * hp.hidden as u64;
        let input = match experts.gate.activation_format() {
            ActivationFormat::Q8K => hp.hidden.div_ceil(256) * 260,
            ActivationFormat::Q8 => hp.hidden.div_ceil(32) * 36,
            ActivationFormat::F32 => hp.hidden * 4,
        };
        TileCosts {
            bytes: widths.clone().map(tile).collect(),
            values: widths.map(|w| 3 * (w * hp.hidden) as u64).collect(),
            input: input as u64,
        }
    }

    /// Bytes of one expert's tiles in the blocks of `rect`.
    #[must_use]
    pub fn strip_bytes(&self, rect: TileRect) -> u64 {
        strip(&self.bytes, rect)
    }

    /// Number of weights in one expert's tiles in the blocks of `rect`.
    #[must_use]
    pub fn strip_values(&self, rect: TileRect) -> u64 {
        strip(&self.values, rect)
    }

    /// Bytes of all tiles of `rect`.
    #[must_use]
    pub fn rect_bytes(&self, rect: TileRect) -> u64 {
        self.strip_bytes(rect) * u64::from(rect.experts.len())
    }
}

fn strip(blocks: &[u64], rect: TileRect) -> u64 {
    let range = rect.blocks.start as usize..rect.blocks.end as usize;
    blocks.get(range).unwrap_or_default().iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ds4_common::model::synthetic::{Formats, presets};

    #[test]
    fn tiles_add_up_to_the_experts() {
        for hp in [presets::flash(5), presets::tiny()] {
            let budget = WeightBudget::of_formats(&hp, &Formats::PUBLISHED_Q4).expect("budget");
            let demand = Demand::new("x".into(), None, &hp, &budget);
            assert_eq!(demand.routed_bytes(), budget.routed_bytes());
            assert_eq!(demand.dense_bytes_a_token(), budget.dense_bytes_a_token());
        }
        let hp = presets::flash(1);
        let budget = WeightBudget::of_formats(&hp, &Formats::PUBLISHED_Q4).expect("budget");
        let tiles = &Demand::new("x".into(), None, &hp, &budget).layers[0].tiles;
        assert_eq!(tiles.input, 16 * 260);
        assert_eq!(tiles.bytes, [14_155_776 / 8; 8]);
    }
}
