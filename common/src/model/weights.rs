//! The sizes of a model's weights, for planning.

use super::layout::{self, TensorKind, TensorSpec};
use super::names::split_block;
use super::synthetic::Formats;
use super::tensors::BoundTensors;
use super::{HyperParams, ModelError};
use crate::gguf::GgufModel;
use crate::quant::GgmlType;

/// The sizes of a model's weights, by when they are read. Computed from names, shapes and types:
/// no weight is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightBudget {
    /// One per layer.
    pub layers: Vec<LayerBudget>,
    /// Bytes of the embedding, of which a token reads one row.
    pub embedding: u64,
    /// Norm, mixer and projection behind the last layer.
    pub head: Amount,
}

/// The weights of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBudget {
    /// What a token reads before its experts are known: attention, compressors, indexer,
    /// hyper-connections, norms and router.
    pub dense: Amount,
    /// The shared expert.
    pub shared: Amount,
    /// Bytes of the table of a hash-routed layer, of which a token reads one row; else 0.
    pub table: u64,
    /// The routed experts, of which a token reads those that it is routed to.
    pub experts: ExpertBudget,
}

/// Some matrices together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes in the file.
    pub bytes: u64,
    /// Number of weights; a token multiplies each once.
    pub values: u64,
}

/// The routed experts of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExpertBudget {
    /// Bytes of all experts together.
    pub bytes: u64,
    /// Weight type of the gate projections.
    pub gate: GgmlType,
    /// Weight type of the up projections.
    pub up: GgmlType,
    /// Weight type of the down projections.
    pub down: GgmlType,
}

impl WeightBudget {
    /// The budget of a model's files.
    ///
    /// # Errors
    /// Tensors of the model are missing, or have shapes or types that do not fit.
    pub fn of_model(gguf: &GgufModel, hp: &HyperParams) -> Result<Self, ModelError> {
        let specs = layout::model(hp);
        let bound = BoundTensors::resolve(gguf, &specs)?;
        let of = |spec: &TensorSpec| {
            let tensor = bound.get(&spec.name)?;
            Ok((tensor.ty(), tensor.info().bytes))
        };
        collect(hp, &specs, of)
    }

    /// The budget of a model with these shapes and formats.
    ///
    /// # Errors
    /// None as long as rows are whole blocks; a row that is not counts as empty.
    pub fn of_formats(hp: &HyperParams, formats: &Formats) -> Result<Self, ModelError> {
        let specs = layout::model(hp);
        collect(hp, &specs, |spec| {
            let ty = formats.of(spec.kind);
            let dims = spec.shape.dims();
            let (row, rows) = dims
                .split_first()
                .map_or((0, 1), |(row, rest)| (*row, rest.iter().product::<u64>()));
            Ok((ty, ty.row_bytes(row).unwrap_or(0) * rows))
        })
    }

    /// Bytes of all routed experts.
    #[must_use]
    pub fn routed_bytes(&self) -> u64 {
        self.layers.iter().map(|l| l.experts.bytes).sum()
    }

    /// Bytes of everything that is not a routed expert.
    #[must_use]
    pub fn dense_bytes(&self) -> u64 {
        let layer = |l: &LayerBudget| l.dense.bytes + l.shared.bytes + l.table;
        self.layers.iter().map(layer).sum::<u64>() + self.head.bytes + self.embedding
    }

    /// Bytes that the coordinator reads for one token.
    #[must_use]
    pub fn dense_bytes_a_token(&self) -> u64 {
        let layer = |l: &LayerBudget| l.dense.bytes + l.shared.bytes;
        self.layers.iter().map(layer).sum::<u64>() + self.head.bytes
    }
}

fn collect(
    hp: &HyperParams,
    specs: &[TensorSpec],
    of: impl Fn(&TensorSpec) -> Result<(GgmlType, u64), ModelError>,
) -> Result<WeightBudget, ModelError> {
    let empty = LayerBudget {
        dense: Amount::default(),
        shared: Amount::default(),
        table: 0,
        experts: ExpertBudget {
            bytes: 0,
            gate: GgmlType::F32,
            up: GgmlType::F32,
            down: GgmlType::F32,
        },
    };
    let mut budget = WeightBudget {
        layers: vec![empty; hp.layers],
        embedding: 0,
        head: Amount::default(),
    };
    for spec in specs {
        let (ty, bytes) = of(spec)?;
        let amount = Amount {
            bytes,
            values: spec.shape.dims().iter().product(),
        };
        let layer = split_block(&spec.name).and_then(|(l, _)| budget.layers.get_mut(l));
        match (spec.kind, layer) {
            (TensorKind::Embedding, _) => budget.embedding += bytes,
            (_, None) => budget.head.add(amount),
            (TensorKind::Shared, Some(layer)) => layer.shared.add(amount),
            (TensorKind::HashTable, Some(layer)) => layer.table += bytes,
            (TensorKind::ExpertUp | TensorKind::ExpertDown, Some(layer)) => {
                let experts = &mut layer.experts;
                experts.bytes += bytes;
                match spec.kind {
                    TensorKind::ExpertDown => experts.down = ty,
                    _ if spec.name.ends_with("ffn_up_exps.weight") => experts.up = ty,
                    _ => experts.gate = ty,
                }
            }
            (_, Some(layer)) => layer.dense.add(amount),
        }
    }
    Ok(budget)
}

impl Amount {
    fn add(&mut self, other: Amount) {
        self.bytes += other.bytes;
        self.values += other.values;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synthetic::{Recipe, presets, write};

    #[test]
    fn every_byte_of_a_file_is_somewhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let hp = presets::tiny();
        let recipe = Recipe::default();
        write(&path, &hp, &recipe).unwrap();
        let gguf = GgufModel::open(&path).unwrap();
        let budget = WeightBudget::of_model(&gguf, &hp).unwrap();
        let all: u64 = gguf.tensors().iter().map(|t| t.bytes).sum();
        assert_eq!(budget.routed_bytes() + budget.dense_bytes(), all);
        let without_file = WeightBudget::of_formats(&hp, &recipe.formats).unwrap();
        assert_eq!(without_file, budget);
    }

    #[test]
    fn flash_has_its_published_size() {
        let hp = presets::flash(43);
        let budget = WeightBudget::of_formats(&hp, &Formats::PUBLISHED_Q4).unwrap();
        assert_eq!(budget.routed_bytes(), 43 * 256 * 14_155_776);
        let layer = &budget.layers[10];
        let experts = &layer.experts;
        assert_eq!([experts.gate, experts.up, experts.down], [GgmlType::Q4K; 3]);
        assert_eq!(layer.shared.values, 3 * 4096 * 2048);
        let gigabytes = budget.dense_bytes_a_token() as f64 / 1e9;
        assert!((7.7..7.8).contains(&gigabytes), "{gigabytes}");
    }
}
