//! Hyper-parameters: read from the keys of a model and checked, each by itself and against others.

use std::f32;
use std::ops::RangeInclusive;

use super::ModelError;
use crate::gguf::{Array, GgufModel, Metadata, MetadataError, Value};

/// The one architecture that this engine runs, as `general.architecture` names it.
pub const ARCHITECTURE: &str = "deepseek4";

/// Most experts that a model may choose for a token; bounds the routes of a call to a node.
pub const MAX_EXPERTS_USED: usize = 256;

/// Shapes and constants of a model, each checked against a range.
#[derive(Clone, Debug, PartialEq)]
pub struct HyperParams {
    /// NL, without speculative (MTP) blocks.
    pub layers: usize,
    /// E, width of one residual stream.
    pub hidden: usize,
    /// V, tokens of the vocabulary.
    pub vocab: usize,
    /// C, the most positions of a sequence.
    pub context: usize,
    /// H, query heads; there is one key-value head.
    pub heads: usize,
    /// D, width of a head.
    pub head_dim: usize,
    /// R, the last dims of a head that are rotated.
    pub rope_dims: usize,
    /// QL, rank of the query projection.
    pub q_rank: usize,
    /// G, groups of heads that are projected together; divides `heads`.
    pub out_groups: usize,
    /// OL, rank of the output projection of one group.
    pub out_rank: usize,
    /// W, raw positions that a token attends to, its own included.
    pub window: usize,
    /// Query heads of the indexer; 0 if no layer has one.
    pub index_heads: usize,
    /// Width of an index row: a power of two, at least `rope_dims`; 0 if no layer has an indexer.
    pub index_dim: usize,
    /// Compressed rows that the indexer chooses for a token; 0 if no layer has an indexer.
    pub index_top_k: usize,
    /// Positions per compressed row, one entry per layer: 0 (window only), 4 or 128.
    pub compress_ratios: Vec<usize>,
    /// Residual streams of the hyper-connections.
    pub streams: usize,
    /// Alternating row and column normalisations of a mixing matrix, 1 to 1000.
    pub sinkhorn_iterations: usize,
    /// Added to what those normalisations divide by.
    pub hc_eps: f32,
    /// NX, routed experts of a layer.
    pub experts: usize,
    /// K, experts that the router chooses for a token.
    pub experts_used: usize,
    /// FF, inner width of an expert.
    pub expert_width: usize,
    /// The first layers, whose experts are looked up by token id.
    pub hash_layers: usize,
    /// Factor of the routed output.
    pub expert_scale: f32,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub normalize_weights: bool,
    /// Bound of gate and up of the routed experts, one per layer; infinite where there is none.
    pub clamp_routed: Vec<f32>,
    /// Bound of gate and up of the shared expert, one per layer; infinite where there is none.
    pub clamp_shared: Vec<f32>,
    /// Added to the mean of squares in every RMS norm.
    pub rms_eps: f32,
    /// RoPE base of layers with ratio 0.
    pub rope_base: f32,
    /// RoPE base of layers with another ratio.
    pub compress_rope_base: f32,
    /// Applied in layers whose ratio is not 0.
    pub yarn: Option<Yarn>,
    /// Experts that every token uses; they are stored as one of `shared_experts` times the width.
    pub shared_experts: usize,
}

/// Context extension of the rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// Ratio of the extended context to the original one.
    pub factor: f32,
    /// Rotations within the original context above which a frequency stays as it is.
    pub beta_fast: f32,
    /// Rotations within the original context below which a frequency is divided by `factor`.
    pub beta_slow: f32,
    /// Positions that the model was trained with.
    pub original_context: usize,
}

impl HyperParams {
    /// Reads the keys of `deepseek4` and takes `block_count` as the number of layers.
    ///
    /// # Errors
    /// Another architecture, a key that is missing or of the wrong type, or a value that no model
    /// can have.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, ModelError> {
        Self::with_speculative_blocks(metadata, 0)
    }

    /// As [`Self::from_metadata`], for a whole model. Converters differ in whether `block_count`
    /// counts the speculative blocks that `nextn_predict_layers` announces: they are taken off
    /// only if the last counted blocks really hold `nextn` tensors.
    ///
    /// # Errors
    /// As [`Self::from_metadata`].
    pub fn from_model(model: &GgufModel) -> Result<Self, ModelError> {
        let keys = Keys {
            metadata: model.metadata(),
        };
        let announced = match keys.metadata.optional_str("general.architecture")? {
            Some(ARCHITECTURE) => keys.optional("nextn_predict_layers", 0..=16)?.unwrap_or(0),
            _ => 0,
        };
        let blocks = keys
            .metadata
            .optional_u32(&keys.name("block_count"))?
            .unwrap_or(0) as usize;
        let is_speculative = |block: usize| {
            let prefix = format!("blk.{block}.nextn.");
            model.tensors().iter().any(|t| t.name.starts_with(&prefix))
                || model
                    .unsupported()
                    .iter()
                    .any(|t| t.name.starts_with(&prefix))
        };
        let counted = (1..=announced.min(blocks))
            .take_while(|n| is_speculative(blocks - n))
            .count();
        Self::with_speculative_blocks(model.metadata(), counted)
    }

    fn with_speculative_blocks(m: &Metadata, speculative: usize) -> Result<Self, ModelError> {
        check_architecture(m)?;
        let k = Keys { metadata: m };
        let blocks = k.required("block_count", 1 + speculative..=1024)?;
        let layers = blocks - speculative;
        let compress_ratios = compress_ratios(&k, layers)?;
        let indexed = compress_ratios.contains(&4);
        let compressed = compress_ratios.iter().any(|&ratio| ratio != 0);
        let index = |key: &str, range: RangeInclusive<usize>| {
            if indexed {
                k.required(key, range)
            } else {
                Ok(0)
            }
        };
        let clamp_routed = clamps(&k, "swiglu_clamp_exp", layers)?.unwrap_or_else(|| {
            tracing::warn!("no swiglu_clamp_exp: using the architecture's limit of {SWIGLU_LIMIT}");
            vec![SWIGLU_LIMIT; layers]
        });
        let clamp_shared =
            clamps(&k, "swiglu_clamp_shexp", layers)?.unwrap_or_else(|| clamp_routed.clone());
        let hp = Self {
            layers,
            hidden: k.required("embedding_length", 1..=1 << 17)?,
            vocab: vocab(&k)?,
            context: k.required("context_length", 1..=1 << 28)?,
            heads: k.required("attention.head_count", 1..=4096)?,
            head_dim: k.required("attention.key_length", 2..=1 << 14)?,
            rope_dims: k.required("rope.dimension_count", 2..=1 << 14)?,
            q_rank: k.required("attention.q_lora_rank", 1..=1 << 17)?,
            out_groups: k.required("attention.output_group_count", 1..=4096)?,
            out_rank: k.required("attention.output_lora_rank", 1..=1 << 17)?,
            window: k.required("attention.sliding_window", 1..=1 << 20)?,
            index_heads: index("attention.indexer.head_count", 1..=4096)?,
            index_dim: index("attention.indexer.key_length", 2..=1 << 14)?,
            index_top_k: index("attention.indexer.top_k", 1..=1 << 24)?,
            compress_ratios,
            streams: k.optional("hyper_connection.count", 1..=8)?.unwrap_or(4),
            sinkhorn_iterations: k
                .optional("hyper_connection.sinkhorn_iterations", 1..=1000)?
                .unwrap_or(20),
            hc_eps: k.positive("hyper_connection.epsilon", 1.0)?.unwrap_or(1e-6),
            experts: k.required("expert_count", 1..=1 << 16)?,
            experts_used: k.required("expert_used_count", 1..=MAX_EXPERTS_USED)?,
            expert_width: k.required("expert_feed_forward_length", 1..=1 << 20)?,
            hash_layers: k.required("hash_layer_count", 0..=1024)?,
            expert_scale: k.required_positive("expert_weights_scale", 1e6)?,
            normalize_weights: m
                .optional_bool(&k.name("expert_weights_norm"))?
                .unwrap_or(true),
            clamp_routed,
            clamp_shared,
            rms_eps: k
                .positive("attention.layer_norm_rms_epsilon", 1.0)?
                .unwrap_or(1e-6),
            rope_base: k.positive("rope.freq_base", 1e12)?.unwrap_or(10_000.0),
            compress_rope_base: compress_rope_base(&k, compressed)?,
            yarn: yarn(&k)?,
            shared_experts: k.optional("expert_shared_count", 1..=64)?.unwrap_or(1),
        };
        hp.check_relations(&k, indexed)?;
        check_fixed(&k, &hp)?;
        Ok(hp)
    }

    /// Width of what one compressor layer projects to, as a multiple of its rows' width: windows
    /// overlap by half where the ratio is 4.
    #[must_use]
    pub fn compressor_overlap(ratio: usize) -> usize {
        if ratio == 4 { 2 } else { 1 }
    }

    /// Width of the stored shared expert.
    #[must_use]
    pub fn shared_width(&self) -> usize {
        self.shared_experts * self.expert_width
    }

    /// What one value cannot say by itself.
    fn check_relations(&self, k: &Keys<'_>, indexed: bool) -> Result<(), MetadataError> {
        let wrong = |key: &str, found: usize, reason: String| Err(k.invalid(key, found, &reason));
        let (rope, heads) = (self.rope_dims, self.heads);
        if !rope.is_multiple_of(2) {
            return wrong("rope.dimension_count", rope, "it must be even".into());
        }
        if rope > self.head_dim {
            let reason = format!("a head has only {} dims", self.head_dim);
            return wrong("rope.dimension_count", rope, reason);
        }
        if !heads.is_multiple_of(self.out_groups) {
            let reason = format!("it must divide the {heads} heads");
            return wrong("attention.output_group_count", self.out_groups, reason);
        }
        if self.experts_used > self.experts {
            let reason = format!("there are only {} experts", self.experts);
            return wrong("expert_used_count", self.experts_used, reason);
        }
        if self.hash_layers > self.layers {
            let reason = format!("there are only {} layers", self.layers);
            return wrong("hash_layer_count", self.hash_layers, reason);
        }
        if indexed && !self.index_dim.is_power_of_two() {
            let reason = "it must be a power of two".into();
            return wrong("attention.indexer.key_length", self.index_dim, reason);
        }
        if indexed && self.index_dim < rope {
            let reason = format!("it must hold the {rope} rotated dims");
            return wrong("attention.indexer.key_length", self.index_dim, reason);
        }
        Ok(())
    }
}

/// Reads keys below the architecture's prefix.
struct Keys<'a> {
    metadata: &'a Metadata,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{ARCHITECTURE}.{key}")
    }

    fn invalid(&self, key: &str, found: impl ToString, reason: &str) -> MetadataError {
        self.metadata.invalid(&self.name(key), found, reason)
    }

    fn optional(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, MetadataError> {
        let Some(value) = self.metadata.optional_u32(&self.name(key))? else {
            return Ok(None);
        };
        let value = value as usize;
        if range.contains(&value) {
            return Ok(Some(value));
        }
        let reason = format!("it must be from {} to {}", range.start(), range.end());
        Err(self.invalid(key, value, &reason))
    }

    fn required(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, MetadataError> {
        match self.optional(key, range)? {
            Some(value) => Ok(value),
            None => Err(self.missing(key)),
        }
    }

    fn missing(&self, key: &str) -> MetadataError {
        self.metadata
            .error(&self.name(key), crate::gguf::MetadataProblem::Missing)
    }

    /// A float above 0 and at most `most`.
    fn positive(&self, key: &str, most: f32) -> Result<Option<f32>, MetadataError> {
        match self.metadata.optional_f32(&self.name(key))? {
            Some(v) if v > 0.0 && v <= most => Ok(Some(v)),
            Some(v) => Err(self.invalid(key, v, &format!("it must be above 0, at most {most}"))),
            None => Ok(None),
        }
    }

    fn required_positive(&self, key: &str, most: f32) -> Result<f32, MetadataError> {
        self.positive(key, most)?.ok_or_else(|| self.missing(key))
    }
}

fn check_architecture(m: &Metadata) -> Result<(), ModelError> {
    let file = || m.source().to_path_buf();
    match m.str("general.architecture")? {
        ARCHITECTURE => Ok(()),
        "deepseek41" => Err(ModelError::DeepSeek41 { file: file() }),
        other => Err(ModelError::Architecture {
            file: file(),
            found: other.to_owned(),
        }),
    }
}

fn vocab(k: &Keys<'_>) -> Result<usize, MetadataError> {
    const MOST: usize = 1 << 24;
    const TOKENS: &str = "tokenizer.ggml.tokens";
    if let Some(vocab) = k.optional("vocab_size", 1..=MOST)? {
        return Ok(vocab);
    }
    match k.metadata.optional_strings(TOKENS)?.map(<[String]>::len) {
        Some(n) if (1..=MOST).contains(&n) => Ok(n),
        Some(n) => {
            let reason = format!("a vocabulary has 1 to {MOST} tokens");
            Err(k.metadata.invalid(TOKENS, format!("{n} tokens"), &reason))
        }
        None => Err(k.missing("vocab_size")),
    }
}

/// Entries beyond the layers belong to speculative blocks.
fn compress_ratios(k: &Keys<'_>, layers: usize) -> Result<Vec<usize>, MetadataError> {
    const KEY: &str = "attention.compress_ratios";
    let all = k.metadata.u32s(&k.name(KEY))?;
    let Some(ours) = all.get(..layers) else {
        let found = format!("{} entries", all.len());
        return Err(k.invalid(KEY, found, &format!("there are {layers} layers")));
    };
    if let Some((layer, ratio)) = ours
        .iter()
        .enumerate()
        .find(|(_, r)| ![0, 4, 128].contains(*r))
    {
        let found = format!("{ratio} for layer {layer}");
        return Err(k.invalid(KEY, found, "only the ratios 0, 4 and 128 are supported"));
    }
    Ok(ours.iter().map(|&ratio| ratio as usize).collect())
}

/// The clamp that every released model was trained with.
const SWIGLU_LIMIT: f32 = 10.0;

/// A scalar for all layers, or one value a layer. 0 means no clamp.
fn clamps(k: &Keys<'_>, key: &str, layers: usize) -> Result<Option<Vec<f32>>, MetadataError> {
    let name = k.name(key);
    let values = match k.metadata.get(&name) {
        None => return Ok(None),
        Some(Value::Array(Array::F32(values))) => values.clone(),
        Some(Value::Array(_)) => {
            k.metadata.optional_f32s(&name)?;
            return Ok(None);
        }
        Some(_) => vec![k.metadata.f32(&name)?; layers],
    };
    let Some(ours) = values.get(..layers) else {
        let found = format!("{} entries", values.len());
        return Err(k.invalid(key, found, &format!("there are {layers} layers")));
    };
    if let Some(bad) = ours.iter().find(|v| v.is_nan() || **v < 0.0) {
        return Err(k.invalid(key, bad, "a clamp cannot be negative"));
    }
    Ok(Some(
        ours.iter()
            .map(|&v| if v == 0.0 { f32::INFINITY } else { v })
            .collect(),
    ))
}

/// Some early files carry this base under the key that other architectures use for layers with a
/// sliding window.
fn compress_rope_base(k: &Keys<'_>, compressed: bool) -> Result<f32, MetadataError> {
    const KEY: &str = "attention.compress_rope_freq_base";
    const ALIAS: &str = "rope.freq_base_swa";
    const DEFAULT: f32 = 160_000.0;
    const MOST: f32 = 1e12;
    match (k.positive(KEY, MOST)?, k.positive(ALIAS, MOST)?) {
        (Some(base), _) | (None, Some(base)) => Ok(base),
        (None, None) if compressed => Err(k.missing(KEY)),
        (None, None) => Ok(DEFAULT),
    }
}

fn yarn(k: &Keys<'_>) -> Result<Option<Yarn>, MetadataError> {
    const TYPE: &str = "rope.scaling.type";
    let factor = k.positive("rope.scaling.factor", 1e6)?;
    let factor = match (k.metadata.optional_str(&k.name(TYPE))?, factor) {
        (Some("yarn"), None) => return Err(k.missing("rope.scaling.factor")),
        (Some("none"), _) => return Ok(None),
        (None, None) => {
            tracing::warn!("no rope.scaling keys: positions are not interpolated (YaRN is off)");
            return Ok(None);
        }
        (Some("yarn") | None, Some(factor)) => factor,
        (Some(other), _) => {
            return Err(k.invalid(
                TYPE,
                format!("{other:?}"),
                "only yarn and none are supported",
            ));
        }
    };
    Ok(Some(Yarn {
        factor,
        beta_fast: k
            .positive("rope.scaling.yarn_beta_fast", 1e6)?
            .unwrap_or(32.0),
        beta_slow: k
            .positive("rope.scaling.yarn_beta_slow", 1e6)?
            .unwrap_or(1.0),
        original_context: k
            .optional("rope.scaling.original_context_length", 1..=1 << 28)?
            .unwrap_or(65_536),
    }))
}

/// Keys that may be absent but can have only one value.
fn check_fixed(k: &Keys<'_>, hp: &HyperParams) -> Result<(), MetadataError> {
    let fixed = |key: &str, only: usize, reason: &str| match k.optional(key, 0..=1 << 24)? {
        Some(found) if found != only => Err(k.invalid(key, found, reason)),
        _ => Ok(()),
    };
    fixed(
        "attention.head_count_kv",
        1,
        "there must be one key-value head",
    )?;
    fixed(
        "attention.value_length",
        hp.head_dim,
        "it must be equal to attention.key_length",
    )?;
    fixed(
        "expert_gating_func",
        4,
        "only 4, the root of softplus, is supported",
    )?;
    for key in ["expert_group_count", "expert_group_used_count"] {
        if let Some(groups @ 2..) = k.optional(key, 0..=1 << 24)? {
            return Err(k.invalid(key, groups, "groups of experts are not supported"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
