//! The same weights in other files: with other names, types, keys and splits the logits are
//! bit-identical to those of the original.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ds4_common::expert::ExpertStore;
use ds4_common::gguf::{Array, GgufModel, Value};
use ds4_common::kernels::Kernels;
use ds4_common::model::{HyperParams, ModelTensors};
use ds4_common::quant::GgmlType;
use ds4_coordinator::cluster::LocalBackend;
use ds4_coordinator::engine::{Engine, EngineConfig, Numerics};
use ds4_tests::golden::{ALL, Reference};
use ds4_tests::rewrite::{Draft, DraftTensor};

use crate::golden::logits;

/// Enough for a few compressed rows, and more than one chunk.
const TOKENS: usize = 60;
const CHUNK: usize = 23;

pub(crate) fn open(paths: &[PathBuf], numerics: Numerics, kernels: Kernels) -> Engine {
    let gguf = GgufModel::open_parts(paths).expect("model");
    let hp = HyperParams::from_model(&gguf).expect("hyper-parameters");
    let tensors = ModelTensors::bind(&gguf, &hp).expect("tensors");
    let store = ExpertStore::new(&hp, &tensors).expect("experts");
    let backend = Arc::new(LocalBackend::new(store, kernels));
    let config = EngineConfig {
        kernels,
        numerics,
        threads: 0,
        pin: false,
        context: 0,
        rewind: 0,
    };
    Engine::new(hp, &tensors, backend, &config).expect("engine")
}

fn run(paths: &[PathBuf], reference: Reference, numerics: Numerics) -> Vec<f32> {
    let tokens = reference.tokens("rand").expect("tokens");
    let mut engine = open(paths, numerics, Kernels::detect());
    logits(&mut engine, &tokens[..TOKENS], &[CHUNK])
}

/// The first position at which two runs differ in a bit.
pub(crate) fn first_difference(a: &[f32], b: &[f32], vocab: usize) -> Option<usize> {
    assert_eq!(a.len(), b.len());
    let at = a
        .iter()
        .zip(b)
        .position(|(a, b)| a.to_bits() != b.to_bits());
    at.map(|i| i / vocab)
}

/// Asserts that `paths` is the model `reference` in another form.
fn assert_same(reference: Reference, paths: &[PathBuf], numerics: &[Numerics], what: &str) {
    for &numerics in numerics {
        let want = run(&[reference.model()], reference, numerics);
        let found = run(paths, reference, numerics);
        let vocab = want.len() / TOKENS;
        assert_eq!(
            first_difference(&found, &want, vocab),
            None,
            "{} {numerics}: {what}",
            reference.0
        );
    }
}

const BOTH: &[Numerics] = &[Numerics::F32, Numerics::Full];

/// Changes every reference model and compares.
fn check(what: &str, numerics: &[Numerics], change: impl Fn(&mut Draft)) {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("changed.gguf");
    for reference in ALL {
        let mut draft = Draft::read(&reference.model()).expect("reference");
        change(&mut draft);
        draft.write(&path).expect("write");
        assert_same(reference, std::slice::from_ref(&path), numerics, what);
    }
}

/// The alternative name of a tensor that has one.
fn alias(name: &str) -> String {
    const ALIASES: [(&str, &str); 5] = [
        ("output_hc_", "hc_head_"),
        (".attn_kv.", ".attn_kv_latent."),
        (".attn_compressor_", ".attn_compress_"),
        (".indexer_compressor_", ".indexer.compress_"),
        (".exp_probs_b.bias", ".exp_probs_b.weight"),
    ];
    ALIASES.iter().fold(name.to_owned(), |name, (from, to)| {
        name.replacen(from, to, 1)
    })
}

#[test]
fn tensors_may_have_their_second_names() {
    check("aliases", BOTH, |draft| {
        assert!(draft.rename(alias) > 10);
    });
    check("a third name", &[Numerics::Full], |draft| {
        let renamed = draft.rename(|name| name.replace(".attn_kv.", ".attn_kv_a_mqa."));
        assert!(renamed >= 2);
    });
}

#[test]
fn the_grouped_projection_may_have_three_dims() {
    check("grouped output", BOTH, |draft| {
        let groups = match draft.get("deepseek4.attention.output_group_count") {
            Ok(&Value::U32(n)) => u64::from(n),
            other => panic!("{other:?}"),
        };
        for tensor in &mut draft.tensors {
            if tensor.name.ends_with("attn_output_a.weight") {
                let rows = tensor.dims[1];
                tensor.dims = vec![tensor.dims[0], rows / groups, groups];
            }
        }
    });
}

#[test]
fn keys_may_have_other_types() {
    const RATIOS: &str = "deepseek4.attention.compress_ratios";
    check("unsigned ratios with an extra entry", BOTH, |draft| {
        let mut ratios: Vec<u32> = match draft.get(RATIOS) {
            Ok(Value::Array(Array::I32(v))) => v.iter().map(|&r| r as u32).collect(),
            Ok(Value::Array(Array::U32(v))) => v.clone(),
            other => panic!("{other:?}"),
        };
        ratios.push(77);
        draft.set(RATIOS, Value::Array(Array::U32(ratios)));
    });
    check("one clamp for all layers", BOTH, |draft| {
        for key in ["swiglu_clamp_exp", "swiglu_clamp_shexp"] {
            let key = format!("deepseek4.{key}");
            match draft.get(&key) {
                Ok(Value::Array(Array::F32(v))) => {
                    let first = v[0];
                    assert!(v.iter().all(|&c| c == first));
                    draft.set(&key, Value::F32(first));
                }
                other => panic!("{other:?}"),
            }
        }
    });
    check("64-bit integers and floats", BOTH, |draft| {
        for (key, value) in &mut draft.metadata {
            if key.starts_with("deepseek4.") {
                match *value {
                    Value::U32(n) => *value = Value::U64(n.into()),
                    Value::F32(v) => *value = Value::F64(v.into()),
                    _ => {}
                }
            }
        }
    });
    check("no optional keys", BOTH, |draft| {
        for key in [
            "vocab_size",
            "hyper_connection.count",
            "hyper_connection.sinkhorn_iterations",
            "hyper_connection.epsilon",
            "expert_shared_count",
            "expert_weights_norm",
            "expert_gating_func",
            "swiglu_clamp_shexp",
            "rope.freq_base",
            "rope.scaling.type",
            "rope.scaling.yarn_beta_fast",
            "rope.scaling.yarn_beta_slow",
            "rope.scaling.original_context_length",
            "attention.layer_norm_rms_epsilon",
            "attention.head_count_kv",
            "attention.value_length",
        ] {
            draft
                .remove(&format!("deepseek4.{key}"))
                .expect("was there");
        }
    });
}

#[test]
fn split_files_may_be_named_by_any_part() {
    for reference in ALL {
        let folder = tempfile::tempdir().expect("folder");
        let draft = Draft::read(&reference.model()).expect("reference");
        let parts = draft.write_split(folder.path(), "m", 3).expect("write");
        for part in &parts {
            let named = std::slice::from_ref(part);
            assert_same(reference, named, &[Numerics::Full], "split");
        }
        let reversed: Vec<PathBuf> = parts.into_iter().rev().collect();
        assert_same(reference, &reversed, &[Numerics::F32], "split, all named");
    }
}

#[test]
fn layer_shards_are_one_model_in_any_order() {
    for reference in ALL {
        let folder = tempfile::tempdir().expect("folder");
        let draft = Draft::read(&reference.model()).expect("reference");
        let [first, second] = draft.write_shards(folder.path(), 2).expect("write");
        let forward = [first.clone(), second.clone()];
        assert_same(reference, &forward, BOTH, "shards");
        assert_same(reference, &[second, first], &[Numerics::Full], "shards");
    }
}

#[test]
fn the_order_of_tensors_does_not_matter() {
    check("reversed tensors", &[Numerics::Full], |draft| {
        draft.tensors.reverse();
    });
}

#[test]
fn version_2_is_read() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("v2.gguf");
    for reference in ALL {
        // Both versions have 64-bit counts; only the number differs.
        let mut bytes = std::fs::read(reference.model()).expect("reference");
        assert_eq!(bytes[4..8], 3u32.to_le_bytes());
        bytes[4..8].copy_from_slice(&2u32.to_le_bytes());
        std::fs::write(&path, bytes).expect("write");
        assert_same(reference, std::slice::from_ref(&path), BOTH, "version 2");
    }
}

fn is_f16(tensor: &DraftTensor) -> bool {
    tensor.ty == GgmlType::F16
}

#[test]
fn float_matrices_may_be_wider() {
    check("F16 as F32", BOTH, |draft| {
        assert!(draft.to_f32(is_f16) > 15);
    });
}

#[test]
fn unrounded_numerics_see_the_values_that_blocks_stand_for() {
    check("all as F32", &[Numerics::F32, Numerics::Cache], |draft| {
        assert!(draft.to_f32(|t| !is_f16(t)) > 20);
    });
}

#[test]
fn rows_of_the_hash_table_may_be_longer_than_they_are_used() {
    check("longer rows", BOTH, |draft| {
        let tables = draft.tensors.iter_mut();
        for table in tables.filter(|t| t.name.contains("tid2eid")) {
            // Not an expert id; entries that are not used are not checked.
            let width = table.dims[0] + 3;
            table
                .lengthen_rows(width, &[0xee; 12])
                .expect("longer rows");
        }
    });
}

/// A variant that uses fewer experts of the same tables must be the model whose tables are that
/// short from the start.
#[test]
fn fewer_experts_may_be_used_than_the_table_lists() {
    let folder = tempfile::tempdir().expect("folder");
    let reference = Reference("tiny-b");
    let paths = ["wide.gguf", "narrow.gguf"].map(|name| folder.path().join(name));
    let mut draft = Draft::read(&reference.model()).expect("reference");
    draft.set("deepseek4.expert_used_count", Value::U32(2));
    draft.write(&paths[0]).expect("write");
    for table in &mut draft.tensors {
        if table.name.contains("tid2eid") {
            let width = table.dims[0] as usize;
            table.bytes = table
                .bytes
                .chunks_exact(width * 4)
                .flat_map(|row| row[..8].to_vec())
                .collect();
            table.dims[0] = 2;
        }
    }
    draft.write(&paths[1]).expect("write");
    let original = run(&[reference.model()], reference, Numerics::Full);
    let [wide, narrow] =
        paths.map(|path| run(std::slice::from_ref(&path), reference, Numerics::Full));
    let vocab = original.len() / TOKENS;
    assert_eq!(first_difference(&wide, &narrow, vocab), None);
    assert!(first_difference(&wide, &original, vocab).is_some());
}

fn add_speculative_block(draft: &mut Draft, block: usize) {
    for name in ["nextn.eh_proj", "nextn.enorm", "attn_norm"] {
        draft.add(&format!("blk.{block}.{name}.weight"), &[1.0; 64]);
    }
    draft.set("deepseek4.nextn_predict_layers", Value::U32(1));
}

#[test]
fn tensors_that_are_not_needed_are_ignored() {
    let blocks = |draft: &Draft| match draft.get("deepseek4.block_count") {
        Ok(&Value::U32(n)) => n,
        other => panic!("{other:?}"),
    };
    check("unknown tensors", BOTH, |draft| {
        draft.add("something.else.weight", &[f32::NAN; 32]);
        draft.add("blk.0.attn_mystery.weight", &[1.0; 32]);
        draft.add("mtp.0.norm.weight", &[1.0; 32]);
    });
    check("a speculative block that is not counted", BOTH, |draft| {
        add_speculative_block(draft, blocks(draft) as usize);
    });
    check("a speculative block that is counted", BOTH, |draft| {
        let layers = blocks(draft);
        add_speculative_block(draft, layers as usize);
        draft.set("deepseek4.block_count", Value::U32(layers + 1));
        for key in ["swiglu_clamp_exp", "swiglu_clamp_shexp"] {
            let key = format!("deepseek4.{key}");
            if let Ok(Value::Array(Array::F32(clamps))) = draft.get(&key) {
                let longer = clamps.iter().copied().chain([0.0]).collect();
                draft.set(&key, Value::Array(Array::F32(longer)));
            }
        }
    });
}

/// A changed file must not pass for the reference, or the tests above would prove nothing.
#[test]
fn a_changed_weight_changes_the_logits() {
    let folder = tempfile::tempdir().expect("folder");
    let path: &Path = &folder.path().join("other.gguf");
    let reference = Reference("tiny-a");
    let mut draft = Draft::read(&reference.model()).expect("reference");
    let norm = draft.tensor_mut("blk.3.attn_norm.weight").expect("norm");
    norm.bytes[..4].copy_from_slice(&3.5f32.to_le_bytes());
    draft.write(path).expect("write");
    let want = run(&[reference.model()], reference, Numerics::Full);
    let found = run(&[path.to_path_buf()], reference, Numerics::Full);
    assert!(first_difference(&found, &want, want.len() / TOKENS).is_some());
}
