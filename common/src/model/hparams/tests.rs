use std::path::PathBuf;

use super::*;
use crate::model::synthetic::presets;

fn metadata(hp: &HyperParams) -> Metadata {
    let mut m = Metadata::new(PathBuf::from("m.gguf"));
    for (key, value) in hp.to_metadata() {
        m.insert(key, value);
    }
    m
}

/// The tiny model's metadata with one key (below the architecture) replaced or, by `None`, gone.
fn changed(key: &str, value: Option<Value>) -> Result<HyperParams, String> {
    let all = metadata(&presets::tiny());
    let full = format!("deepseek4.{key}");
    let mut m = Metadata::new(PathBuf::from("m.gguf"));
    for (known, old) in all.iter().filter(|(known, _)| *known != full) {
        m.insert(known, old.clone());
    }
    if let Some(value) = value {
        m.insert(full, value);
    }
    HyperParams::from_metadata(&m).map_err(|e| e.to_string())
}

fn u32(value: u32) -> Option<Value> {
    Some(Value::U32(value))
}

fn ints(values: &[i32]) -> Option<Value> {
    Some(Value::Array(Array::I32(values.to_vec())))
}

fn floats(values: &[f32]) -> Option<Value> {
    Some(Value::Array(Array::F32(values.to_vec())))
}

#[test]
fn what_is_written_is_read_back() {
    let unclamped = HyperParams {
        clamp_routed: vec![f32::INFINITY; 4],
        yarn: None,
        ..presets::tiny()
    };
    let window_only = HyperParams {
        compress_ratios: vec![0; 4],
        index_heads: 0,
        index_dim: 0,
        index_top_k: 0,
        ..presets::tiny()
    };
    for hp in [
        presets::tiny(),
        presets::flash(43),
        presets::flash(1),
        unclamped,
        window_only,
    ] {
        assert_eq!(HyperParams::from_metadata(&metadata(&hp)).unwrap(), hp);
    }
}

#[test]
fn other_architectures_are_refused_by_name() {
    for (name, want) in [("deepseek41", "V4.1"), ("llama", "\"llama\"")] {
        let mut m = metadata(&presets::tiny());
        m.insert("general.architecture", Value::String(name.into()));
        let text = HyperParams::from_metadata(&m).unwrap_err().to_string();
        assert!(text.starts_with("m.gguf") && text.contains(want), "{text}");
    }
    let empty = Metadata::new(PathBuf::from("m.gguf"));
    let text = HyperParams::from_metadata(&empty).unwrap_err().to_string();
    assert!(text.contains("general.architecture is missing"), "{text}");
}

#[test]
fn optional_keys_have_their_defaults() {
    let hp = presets::tiny();
    for key in [
        "hyper_connection.count",
        "hyper_connection.sinkhorn_iterations",
        "hyper_connection.epsilon",
        "attention.layer_norm_rms_epsilon",
        "attention.value_length",
        "attention.head_count_kv",
        "expert_shared_count",
        "expert_gating_func",
        "expert_weights_norm",
        "rope.freq_base",
        "rope.scaling.type",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.original_context_length",
        "swiglu_clamp_shexp",
    ] {
        assert_eq!(changed(key, None).as_ref(), Ok(&hp), "{key}");
    }
    assert_eq!(
        changed("swiglu_clamp_exp", None).unwrap().clamp_routed,
        [10.0; 4]
    );
}

#[test]
fn required_keys_are_named_when_they_are_missing() {
    for key in [
        "block_count",
        "embedding_length",
        "vocab_size",
        "context_length",
        "attention.head_count",
        "attention.key_length",
        "attention.q_lora_rank",
        "attention.output_group_count",
        "attention.output_lora_rank",
        "attention.sliding_window",
        "attention.compress_ratios",
        "attention.compress_rope_freq_base",
        "attention.indexer.head_count",
        "attention.indexer.key_length",
        "attention.indexer.top_k",
        "rope.dimension_count",
        "rope.scaling.factor",
        "expert_count",
        "expert_used_count",
        "expert_feed_forward_length",
        "expert_weights_scale",
        "hash_layer_count",
    ] {
        let text = changed(key, None).unwrap_err();
        assert!(
            text.contains(&format!("deepseek4.{key} is missing")),
            "{text}"
        );
    }
}

#[test]
fn values_that_no_model_can_have_are_refused() {
    for (key, value, want) in [
        ("block_count", u32(0), "from 1"),
        ("block_count", u32(u32::MAX), "to 1024"),
        ("embedding_length", u32(0), "from 1"),
        (
            "embedding_length",
            Some(Value::String("x".into())),
            "must be u32, but is string",
        ),
        ("attention.head_count", u32(1 << 20), "to 4096"),
        ("attention.head_count_kv", u32(2), "one key-value head"),
        (
            "attention.value_length",
            u32(64),
            "equal to attention.key_length",
        ),
        (
            "attention.output_group_count",
            u32(3),
            "must divide the 4 heads",
        ),
        ("attention.indexer.key_length", u32(96), "power of two"),
        (
            "attention.indexer.key_length",
            u32(32),
            "hold the 64 rotated",
        ),
        (
            "attention.compress_ratios",
            ints(&[0, 4, 64, 4]),
            "64 for layer 2",
        ),
        (
            "attention.compress_ratios",
            ints(&[0, 4, -1, 4]),
            "does not fit u32",
        ),
        (
            "attention.compress_ratios",
            ints(&[0, 4]),
            "there are 4 layers",
        ),
        (
            "attention.layer_norm_rms_epsilon",
            Some(Value::F32(-1.0)),
            "above 0",
        ),
        (
            "attention.layer_norm_rms_epsilon",
            Some(Value::F32(f32::NAN)),
            "above 0",
        ),
        ("rope.dimension_count", u32(63), "even"),
        ("rope.dimension_count", u32(512), "only 256 dims"),
        (
            "rope.scaling.type",
            Some(Value::String("linear".into())),
            "only yarn",
        ),
        ("rope.freq_base", Some(Value::F32(f32::INFINITY)), "above 0"),
        ("expert_used_count", u32(9), "only 8 experts"),
        ("expert_used_count", u32(0), "from 1"),
        ("expert_used_count", u32(257), "to 256"),
        ("expert_gating_func", u32(2), "only 4"),
        ("expert_group_count", u32(8), "groups of experts"),
        (
            "expert_weights_scale",
            Some(Value::F32(f32::INFINITY)),
            "above 0",
        ),
        ("hash_layer_count", u32(5), "only 4 layers"),
        ("swiglu_clamp_exp", floats(&[1.0]), "there are 4 layers"),
        (
            "swiglu_clamp_exp",
            floats(&[1.0, -1.0, 1.0, 1.0]),
            "negative",
        ),
        (
            "swiglu_clamp_exp",
            ints(&[1, 1, 1, 1]),
            "must be array of f32",
        ),
    ] {
        let text = changed(key, value).unwrap_err();
        assert!(text.contains(key) && text.contains(want), "{key}: {text}");
    }
    assert!(
        changed("block_count", u32(5))
            .unwrap_err()
            .contains("there are 5 layers")
    );
}

#[test]
fn variants_of_published_files_are_read() {
    let with_extra = changed("attention.compress_ratios", ints(&[0, 4, 128, 4, 7])).unwrap();
    assert_eq!(with_extra.compress_ratios, [0, 4, 128, 4]);
    assert_eq!(changed("expert_group_count", u32(0)), Ok(presets::tiny()));
    let scalar = changed("swiglu_clamp_exp", Some(Value::F32(7.0))).unwrap();
    assert_eq!(
        (scalar.clamp_routed, scalar.clamp_shared),
        (vec![7.0; 4], vec![10.0; 4])
    );
    let none = changed("rope.scaling.type", Some(Value::String("none".into()))).unwrap();
    assert_eq!(none.yarn, None);

    let mut m = Metadata::new(PathBuf::from("m.gguf"));
    for (key, value) in metadata(&presets::tiny()).iter() {
        let key = key.replace("attention.compress_rope_freq_base", "rope.freq_base_swa");
        m.insert(key.replace(".vocab_size", ".unread"), value.clone());
    }
    let tokens = vec![String::new(); 512];
    m.insert("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    assert_eq!(HyperParams::from_metadata(&m).unwrap(), presets::tiny());
    m.insert(
        "deepseek4.attention.compress_rope_freq_base",
        Value::F32(5.0),
    );
    assert_eq!(
        HyperParams::from_metadata(&m)
            .unwrap()
            .compress_rope_base
            .to_bits(),
        5f32.to_bits()
    );
}
