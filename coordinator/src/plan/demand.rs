//! What a model asks of the machines that serve it, in bytes, operations and messages.

use std::sync::Arc;

use ds4_common::model::{Amount, ExpertBudget, Fingerprint, HyperParams, WeightBudget};
use ds4_common::quant::{ActivationFormat, GgmlType};
use ds4_common::tiles::{BLOCK_WIDTH, Grid, TileRect};

/// A model, as far as a planner has to know it.
#[derive(Clone, Debug)]
pub struct Demand {
    pub name: String,
    /// Absent without a model file.
    pub fingerprint: Option<Fingerprint>,
    pub grid: Grid,
    /// Width of a layer's input and of a reply's row.
    pub hidden: usize,
    /// Experts that a token uses.
    pub used: usize,
    pub layers: Vec<LayerDemand>,
    /// What follows the last layer.
    pub head: Amount,
    /// Weights that the coordinator keeps in memory.
    pub dense_bytes: u64,
}

/// One layer.
#[derive(Clone, Debug)]
pub struct LayerDemand {
    /// What the coordinator reads before a token's experts are known.
    pub dense: Amount,
    /// What it reads while the nodes work.
    pub shared: Amount,
    pub tiles: Arc<TileCosts>,
}

/// The tiles of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TileCosts {
    /// Bytes of one expert's tile, block by block.
    pub bytes: Vec<u64>,
    /// Its weights.
    pub values: Vec<u64>,
    /// Bytes of one token's activations on the wire.
    pub input: u64,
}

impl Demand {
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
            used: hp.experts_used,
            layers,
            head: budget.head,
            dense_bytes: budget.dense_bytes(),
        }
    }

    /// Bytes of all routed experts.
    #[must_use]
    pub fn routed_bytes(&self) -> u64 {
        let whole = self.grid.whole();
        self.layers.iter().map(|l| l.tiles.rect_bytes(whole)).sum()
    }

    /// Bytes that one token makes the coordinator read.
    #[must_use]
    pub fn dense_bytes_a_token(&self) -> u64 {
        let layer = |l: &LayerDemand| l.dense.bytes + l.shared.bytes;
        self.layers.iter().map(layer).sum::<u64>() + self.head.bytes
    }

    /// Bytes of the experts that one token uses.
    #[must_use]
    pub fn routed_bytes_a_token(&self) -> u64 {
        self.routed_bytes() / u64::from(self.grid.experts) * self.used as u64
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

    /// Bytes of one expert's tiles in the rectangle's blocks.
    #[must_use]
    pub fn strip_bytes(&self, rect: TileRect) -> u64 {
        strip(&self.bytes, rect)
    }

    /// Weights of one expert's tiles in the rectangle's blocks.
    #[must_use]
    pub fn strip_values(&self, rect: TileRect) -> u64 {
        strip(&self.values, rect)
    }

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
