//! The tensors of a model, bound by name, shape and type. Refuses a file in which one is missing or
//! does not fit.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use tracing::{info, warn};

use super::layout::{self, TensorKind, TensorSpec};
use super::names::{block_name, split_block};
use super::{HyperParams, ModelError};
use crate::gguf::{GgufModel, Tensor};
use crate::quant::GgmlType;

/// Every weight of the model, found under whichever name the file has, with checked shape and type.
#[derive(Clone, Debug)]
pub struct ModelTensors {
    /// `[E, V]`.
    pub token_embd: Tensor,
    /// `[E, V]`.
    pub output: Tensor,
    /// `[E]`.
    pub output_norm: Tensor,
    /// `[streams·E, streams]`.
    pub output_hc_fn: Tensor,
    /// `[streams]`.
    pub output_hc_base: Tensor,
    /// `[1]`.
    pub output_hc_scale: Tensor,
    /// One per layer, speculative blocks left out.
    pub layers: Vec<LayerTensors>,
}

/// The weights of one block. Shapes are fastest dim first.
#[derive(Clone, Debug)]
pub struct LayerTensors {
    /// `[streams·E, streams·(streams+2)]`.
    pub hc_attn_fn: Tensor,
    /// `[streams·(streams+2)]`.
    pub hc_attn_base: Tensor,
    /// `[3]`.
    pub hc_attn_scale: Tensor,
    /// As `hc_attn_fn`.
    pub hc_ffn_fn: Tensor,
    /// As `hc_attn_base`.
    pub hc_ffn_base: Tensor,
    /// As `hc_attn_scale`.
    pub hc_ffn_scale: Tensor,
    /// `[E]`.
    pub attn_norm: Tensor,
    /// `[E]`.
    pub ffn_norm: Tensor,
    /// `[E, QL]`.
    pub attn_q_a: Tensor,
    /// `[QL]`.
    pub attn_q_a_norm: Tensor,
    /// `[QL, H·D]`.
    pub attn_q_b: Tensor,
    /// `[E, D]`.
    pub attn_kv: Tensor,
    /// `[D]`.
    pub attn_kv_a_norm: Tensor,
    /// `[H]`.
    pub attn_sinks: Tensor,
    /// `[D·H/G, G·OL]`, or the same bytes as `[D·H/G, OL, G]`.
    pub attn_output_a: Tensor,
    /// `[G·OL, E]`.
    pub attn_output_b: Tensor,
    /// Only where the ratio is not 0; rows of width D.
    pub compressor: Option<CompressorTensors>,
    /// Only where the ratio is 4.
    pub indexer: Option<IndexerTensors>,
    /// `[E, NX]`.
    pub ffn_gate_inp: Tensor,
    /// `[NX]`; only behind the hash layers.
    pub exp_probs_b: Option<Tensor>,
    /// `[K or more, V]`, I32; only in hash layers. The first K of a row are legal experts.
    pub tid2eid: Option<Tensor>,
    /// `[E, FF, NX]`.
    pub gate_exps: Tensor,
    /// `[E, FF, NX]`.
    pub up_exps: Tensor,
    /// `[FF, E, NX]`.
    pub down_exps: Tensor,
    /// `[E, FF·shared]`.
    pub gate_shexp: Tensor,
    /// `[E, FF·shared]`.
    pub up_shexp: Tensor,
    /// `[FF·shared, E]`.
    pub down_shexp: Tensor,
}

/// c is 2 where the ratio is 4, else 1; d is the width of the compressed rows.
#[derive(Clone, Debug)]
pub struct CompressorTensors {
    /// `[E, c·d]`.
    pub kv: Tensor,
    /// `[E, c·d]`.
    pub gate: Tensor,
    /// `[c·d, ratio]`.
    pub ape: Tensor,
    /// `[d]`.
    pub norm: Tensor,
}

/// The indexer of a layer with ratio 4, which scores compressed rows.
#[derive(Clone, Debug)]
pub struct IndexerTensors {
    /// `[QL, heads·dim]` of the indexer.
    pub q_b: Tensor,
    /// `[E, heads]` of the indexer.
    pub proj: Tensor,
    /// Compressor of the rows that it scores; d is the width of an index row.
    pub compressor: CompressorTensors,
}

impl ModelTensors {
    /// Finds every tensor that a model of `hp` has. Reads no weights except the hash tables.
    ///
    /// Logs unknown tensors as warnings, and the number of those of speculative blocks.
    ///
    /// # Errors
    /// Tensors are missing (all are listed), or one has a shape or type that does not fit, or a
    /// hash table names an expert that does not exist.
    pub fn bind(gguf: &GgufModel, hp: &HyperParams) -> Result<Self, ModelError> {
        let specs = layout::model(hp);
        let bound = BoundTensors::resolve(gguf, &specs)?;
        report_unused(gguf, hp, &bound);
        let layers = (0..hp.layers)
            .map(|i| bound.layer(hp, i))
            .collect::<Result<Vec<_>, _>>()?;
        for table in layers.iter().filter_map(|layer| layer.tid2eid.as_ref()) {
            check_hash_table(hp, table)?;
        }
        Ok(Self {
            token_embd: bound.get("token_embd.weight")?,
            output: bound.get("output.weight")?,
            output_norm: bound.get("output_norm.weight")?,
            output_hc_fn: bound.get("output_hc_fn.weight")?,
            output_hc_base: bound.get("output_hc_base.weight")?,
            output_hc_scale: bound.get("output_hc_scale.weight")?,
            layers,
        })
    }
}

/// The tensors of the table by the name that the table gives them.
pub(super) struct BoundTensors {
    file: PathBuf,
    tensors: HashMap<String, Tensor>,
}

impl BoundTensors {
    pub(super) fn resolve(gguf: &GgufModel, specs: &[TensorSpec]) -> Result<Self, ModelError> {
        let file = gguf.name().to_path_buf();
        let mut tensors = HashMap::with_capacity(specs.len());
        let mut missing = Vec::new();
        for spec in specs {
            match find(gguf, spec)? {
                Some(tensor) => {
                    check(spec, &tensor)?;
                    tensors.insert(spec.name.clone(), tensor);
                }
                None => missing.push(spec.name.clone()),
            }
        }
        if missing.is_empty() {
            Ok(Self { file, tensors })
        } else {
            Err(ModelError::MissingTensors { file, missing })
        }
    }

    pub(super) fn get(&self, name: &str) -> Result<Tensor, ModelError> {
        self.tensors
            .get(name)
            .cloned()
            .ok_or_else(|| ModelError::MissingTensors {
                file: self.file.clone(),
                missing: vec![name.to_owned()],
            })
    }

    fn layer(&self, hp: &HyperParams, block: usize) -> Result<LayerTensors, ModelError> {
        let ratio = hp.compress_ratios.get(block).copied().unwrap_or(0);
        let hashed = block < hp.hash_layers;
        let named = |name: &str| self.get(&block_name(block, name));
        let get = |name: &str| named(&format!("{name}.weight"));
        let compressor = |name: &str| -> Result<CompressorTensors, ModelError> {
            Ok(CompressorTensors {
                kv: get(&format!("{name}_kv"))?,
                gate: get(&format!("{name}_gate"))?,
                ape: get(&format!("{name}_ape"))?,
                norm: get(&format!("{name}_norm"))?,
            })
        };
        let indexer = || -> Result<IndexerTensors, ModelError> {
            Ok(IndexerTensors {
                q_b: get("indexer.attn_q_b")?,
                proj: get("indexer.proj")?,
                compressor: compressor("indexer_compressor")?,
            })
        };
        Ok(LayerTensors {
            hc_attn_fn: get("hc_attn_fn")?,
            hc_attn_base: get("hc_attn_base")?,
            hc_attn_scale: get("hc_attn_scale")?,
            hc_ffn_fn: get("hc_ffn_fn")?,
            hc_ffn_base: get("hc_ffn_base")?,
            hc_ffn_scale: get("hc_ffn_scale")?,
            attn_norm: get("attn_norm")?,
            ffn_norm: get("ffn_norm")?,
            attn_q_a: get("attn_q_a")?,
            attn_q_a_norm: get("attn_q_a_norm")?,
            attn_q_b: get("attn_q_b")?,
            attn_kv: get("attn_kv")?,
            attn_kv_a_norm: get("attn_kv_a_norm")?,
            attn_sinks: get("attn_sinks")?,
            attn_output_a: get("attn_output_a")?,
            attn_output_b: get("attn_output_b")?,
            compressor: (ratio != 0)
                .then(|| compressor("attn_compressor"))
                .transpose()?,
            indexer: (ratio == 4).then(indexer).transpose()?,
            ffn_gate_inp: get("ffn_gate_inp")?,
            exp_probs_b: (!hashed).then(|| named("exp_probs_b.bias")).transpose()?,
            tid2eid: hashed.then(|| get("ffn_gate_tid2eid")).transpose()?,
            gate_exps: get("ffn_gate_exps")?,
            up_exps: get("ffn_up_exps")?,
            down_exps: get("ffn_down_exps")?,
            gate_shexp: get("ffn_gate_shexp")?,
            up_shexp: get("ffn_up_shexp")?,
            down_shexp: get("ffn_down_shexp")?,
        })
    }
}

/// The tensor under its own name or one alias.
fn find(gguf: &GgufModel, spec: &TensorSpec) -> Result<Option<Tensor>, ModelError> {
    let mut names = std::iter::once(&spec.name)
        .chain(&spec.aliases)
        .filter(|name| gguf.contains(name));
    let Some(name) = names.next() else {
        return Ok(None);
    };
    if let Some(other) = names.next() {
        return Err(ModelError::TwoNames {
            file: gguf.name().to_path_buf(),
            first: name.clone(),
            second: other.clone(),
        });
    }
    Ok(Some(gguf.require(name)?))
}

fn check(spec: &TensorSpec, tensor: &Tensor) -> Result<(), ModelError> {
    let file = || tensor.file().to_path_buf();
    if !spec.shape.admits(tensor.dims()) {
        return Err(ModelError::Shape {
            file: file(),
            tensor: tensor.name().to_owned(),
            expected: spec.shape.describe(),
            found: tensor.dims().to_vec(),
        });
    }
    let float = matches!(tensor.ty(), GgmlType::F32 | GgmlType::F16 | GgmlType::BF16);
    let integer = tensor.ty() == GgmlType::I32;
    let (fits, expected) = match spec.kind {
        TensorKind::HashTable => (integer, "I32"),
        TensorKind::Norm
        | TensorKind::Sinks
        | TensorKind::RouterBias
        | TensorKind::MixerBase
        | TensorKind::MixerScale => (float, "F32, F16 or BF16"),
        _ => (!integer, "a weight format"),
    };
    if fits {
        return Ok(());
    }
    let (tensor, found) = (tensor.name().to_owned(), tensor.ty());
    Err(ModelError::Type {
        file: file(),
        tensor,
        expected,
        found,
    })
}

/// Every entry that is used must be an expert, so that routing need not check it.
fn check_hash_table(hp: &HyperParams, table: &Tensor) -> Result<(), ModelError> {
    let width = usize::try_from(table.dims().first().copied().unwrap_or(0)).unwrap_or(usize::MAX);
    let (entries, _) = table.bytes().as_chunks::<4>();
    for (token, row) in entries.chunks_exact(width.max(1)).enumerate() {
        for &entry in row.iter().take(hp.experts_used) {
            let expert = i32::from_le_bytes(entry);
            if usize::try_from(expert).is_ok_and(|e| e < hp.experts) {
                continue;
            }
            return Err(ModelError::HashRoute {
                file: table.file().to_path_buf(),
                tensor: table.name().to_owned(),
                token,
                expert,
                experts: hp.experts,
            });
        }
    }
    Ok(())
}

/// Logs what the file holds beyond the model. Blocks for speculation are left out on purpose; any
/// other tensor may mean that the model needs mathematics that this engine does not know.
fn report_unused(gguf: &GgufModel, hp: &HyperParams, bound: &BoundTensors) {
    const MOST_WARNINGS: usize = 16;
    let used: HashSet<&str> = bound.tensors.values().map(Tensor::name).collect();
    let all = gguf.tensors().iter().map(|t| t.name.as_str());
    let all = all.chain(gguf.unsupported().iter().map(|t| t.name.as_str()));
    let unused = all.filter(|name| !used.contains(name));
    let (speculative, unknown): (Vec<_>, Vec<_>) =
        unused.partition(|name| is_speculative(hp, name));
    let file = bound.file.display();
    if !speculative.is_empty() {
        info!(
            "{file}: {} tensors of speculative blocks are not used",
            speculative.len()
        );
    }
    for name in unknown.iter().take(MOST_WARNINGS) {
        warn!("{file}: unknown tensor {name} is not used");
    }
    if unknown.len() > MOST_WARNINGS {
        warn!(
            "{file}: {} more tensors are unknown",
            unknown.len() - MOST_WARNINGS
        );
    }
}

fn is_speculative(hp: &HyperParams, name: &str) -> bool {
    name.starts_with("mtp.")
        || name.starts_with("dspark.")
        || name.starts_with("nextn.")
        || split_block(name)
            .is_some_and(|(block, rest)| block >= hp.layers || rest.starts_with("nextn."))
}

#[cfg(test)]
mod tests;
