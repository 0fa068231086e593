//! Hyper-parameters as keys, for slices and synthetic models.

use super::hparams::ARCHITECTURE;
use super::{HyperParams, Yarn};
use crate::gguf::{Array, Value};

impl HyperParams {
    /// The keys from which [`HyperParams::from_metadata`] reads these values back.
    #[must_use]
    pub fn to_metadata(&self) -> Vec<(String, Value)> {
        let mut keys = vec![
            ("block_count", integer(self.layers)),
            ("embedding_length", integer(self.hidden)),
            ("vocab_size", integer(self.vocab)),
            ("context_length", integer(self.context)),
            ("attention.head_count", integer(self.heads)),
            ("attention.head_count_kv", integer(1)),
            ("attention.key_length", integer(self.head_dim)),
            ("attention.value_length", integer(self.head_dim)),
            ("attention.q_lora_rank", integer(self.q_rank)),
            ("attention.output_group_count", integer(self.out_groups)),
            ("attention.output_lora_rank", integer(self.out_rank)),
            ("attention.sliding_window", integer(self.window)),
            ("attention.compress_ratios", integers(&self.compress_ratios)),
            (
                "attention.compress_rope_freq_base",
                Value::F32(self.compress_rope_base),
            ),
            ("attention.layer_norm_rms_epsilon", Value::F32(self.rms_eps)),
            ("rope.dimension_count", integer(self.rope_dims)),
            ("rope.freq_base", Value::F32(self.rope_base)),
            ("hyper_connection.count", integer(self.streams)),
            (
                "hyper_connection.sinkhorn_iterations",
                integer(self.sinkhorn_iterations),
            ),
            ("hyper_connection.epsilon", Value::F32(self.hc_eps)),
            ("expert_count", integer(self.experts)),
            ("expert_used_count", integer(self.experts_used)),
            ("expert_shared_count", integer(self.shared_experts)),
            ("expert_feed_forward_length", integer(self.expert_width)),
            ("expert_weights_scale", Value::F32(self.expert_scale)),
            ("expert_weights_norm", Value::Bool(self.normalize_weights)),
            ("expert_gating_func", integer(4)),
            ("hash_layer_count", integer(self.hash_layers)),
            ("swiglu_clamp_exp", clamps(&self.clamp_routed)),
            ("swiglu_clamp_shexp", clamps(&self.clamp_shared)),
        ];
        if self.compress_ratios.contains(&4) {
            keys.push(("attention.indexer.head_count", integer(self.index_heads)));
            keys.push(("attention.indexer.key_length", integer(self.index_dim)));
            keys.push(("attention.indexer.top_k", integer(self.index_top_k)));
        }
        if let Some(Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_context,
        }) = self.yarn
        {
            keys.push(("rope.scaling.type", Value::String("yarn".into())));
            keys.push(("rope.scaling.factor", Value::F32(factor)));
            keys.push(("rope.scaling.yarn_beta_fast", Value::F32(beta_fast)));
            keys.push(("rope.scaling.yarn_beta_slow", Value::F32(beta_slow)));
            keys.push((
                "rope.scaling.original_context_length",
                integer(original_context),
            ));
        }
        let architecture = (
            "general.architecture".to_owned(),
            Value::String(ARCHITECTURE.into()),
        );
        let keys = keys
            .into_iter()
            .map(|(key, value)| (format!("{ARCHITECTURE}.{key}"), value));
        std::iter::once(architecture).chain(keys).collect()
    }
}

fn integer(value: usize) -> Value {
    u32::try_from(value).map_or(Value::U64(value as u64), Value::U32)
}

fn integers(values: &[usize]) -> Value {
    let narrow = |&v: &usize| u32::try_from(v).unwrap_or(u32::MAX);
    Value::Array(Array::U32(values.iter().map(narrow).collect()))
}

/// No clamp is stored as 0.
fn clamps(values: &[f32]) -> Value {
    let stored = |&v: &f32| if v.is_infinite() { 0.0 } else { v };
    Value::Array(Array::F32(values.iter().map(stored).collect()))
}
