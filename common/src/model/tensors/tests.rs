use std::fs;
use std::path::Path;

use super::*;
use crate::gguf::{GgufWriter, Value};
use crate::model::synthetic::{Formats, presets};

/// A tensor as a test wants it: name, dims, type, bytes.
type Planned = (String, Vec<u64>, GgmlType);

fn planned(hp: &HyperParams) -> Vec<Planned> {
    layout::model(hp)
        .iter()
        .map(|spec| {
            let ty = Formats::PUBLISHED_Q4.of(spec.kind);
            (spec.name.clone(), spec.shape.dims().to_vec(), ty)
        })
        .collect()
}

/// Writes zeros everywhere (a legal expert, and legal blocks) and opens the file again.
fn model(dir: &Path, hp: &HyperParams, keys: &[(&str, Value)], tensors: &[Planned]) -> GgufModel {
    let mut w = GgufWriter::new();
    for (key, value) in hp.to_metadata() {
        if keys.iter().all(|(other, _)| *other != key) {
            w.add(&key, value).unwrap();
        }
    }
    for (key, value) in keys {
        w.add(key, value.clone()).unwrap();
    }
    for (name, dims, ty) in tensors {
        w.add_tensor(name, dims, *ty).unwrap();
    }
    let path = dir.join("m.gguf");
    w.write_file(&path, |t, out| {
        out.write_all(&vec![0; usize::try_from(t.bytes).unwrap()])
    })
    .unwrap();
    GgufModel::open(&path).unwrap()
}

/// Binds the tiny model after `change` was made to its tensors.
fn bind(change: impl FnOnce(&mut Vec<Planned>)) -> Result<ModelTensors, ModelError> {
    let dir = tempfile::tempdir().unwrap();
    let hp = presets::tiny();
    let mut tensors = planned(&hp);
    change(&mut tensors);
    ModelTensors::bind(&model(dir.path(), &hp, &[], &tensors), &hp)
}

fn message(change: impl FnOnce(&mut Vec<Planned>)) -> String {
    let text = bind(change).unwrap_err().to_string();
    assert!(text.contains("m.gguf") && !text.contains('\n'), "{text}");
    text
}

fn named<'a>(tensors: &'a mut [Planned], name: &str) -> &'a mut Planned {
    tensors.iter_mut().find(|t| t.0 == name).unwrap()
}

#[test]
fn other_converters_names_are_accepted() {
    let bound = bind(|tensors| {
        for (name, ..) in tensors.iter_mut() {
            *name = name
                .replace("output_hc_", "hc_head_")
                .replace("attn_kv.", "attn_kv_a_mqa.")
                .replace("attn_compressor_", "attn_compress_")
                .replace("indexer_compressor_", "indexer.compress_")
                .replace("exp_probs_b.bias", "exp_probs_b.weight");
        }
        *named(tensors, "blk.2.attn_kv_a_mqa.weight") = (
            "blk.2.attn_kv_latent.weight".into(),
            vec![256, 256],
            GgmlType::F32,
        );
    })
    .unwrap();
    assert_eq!(bound.output_hc_fn.name(), "hc_head_fn.weight");
    assert_eq!(
        bound.layers[2].attn_kv.name(),
        "blk.2.attn_kv_latent.weight"
    );
    let indexer = bound.layers[1].indexer.as_ref().unwrap();
    assert_eq!(
        indexer.compressor.ape.name(),
        "blk.1.indexer.compress_ape.weight"
    );
}

#[test]
fn all_missing_tensors_are_listed_at_once() {
    let text = message(|tensors| {
        tensors.retain(|t| !t.0.contains("attn_sinks") && t.0 != "output_norm.weight");
    });
    assert!(
        text.contains("output_norm.weight, blk.{0-3}.attn_sinks.weight"),
        "{text}"
    );
}

#[test]
fn a_wrong_shape_names_the_tensor_and_both_shapes() {
    let text = message(|tensors| named(tensors, "blk.1.attn_q_a.weight").1 = vec![256, 128]);
    assert!(text.contains("blk.1.attn_q_a.weight"), "{text}");
    assert!(
        text.contains("[256, 128]") && text.contains("[256, 256]"),
        "{text}"
    );
    let text = message(|tensors| named(tensors, "blk.0.ffn_gate_exps.weight").1[2] = 7);
    assert!(
        text.contains("[256, 256, 7]") && text.contains("[256, 256, 8]"),
        "{text}"
    );
}

#[test]
fn shapes_with_the_same_meaning_are_accepted() {
    let bound = bind(|tensors| {
        named(tensors, "blk.0.attn_output_a.weight").1 = vec![512, 128, 2];
        named(tensors, "blk.0.attn_norm.weight").1 = vec![256, 1];
        named(tensors, "blk.0.ffn_gate_tid2eid.weight").1 = vec![6, 512];
    })
    .unwrap();
    assert_eq!(bound.layers[0].tid2eid.as_ref().unwrap().dims(), [6, 512]);
    let text = message(|t| named(t, "blk.0.ffn_gate_tid2eid.weight").1 = vec![1, 512]);
    assert!(
        text.contains("[1, 512]") && text.contains("[2, 512] or longer rows"),
        "{text}"
    );
    message(|t| named(t, "blk.0.attn_output_a.weight").1 = vec![512, 2, 128]);
}

#[test]
fn types_must_suit_the_role() {
    for (name, ty, want) in [
        ("blk.0.attn_norm.weight", GgmlType::Q8_0, "F32, F16 or BF16"),
        ("blk.0.ffn_gate_tid2eid.weight", GgmlType::F32, "I32"),
        ("blk.0.ffn_gate_inp.weight", GgmlType::I32, "weight format"),
    ] {
        let text = message(|tensors| named(tensors, name).2 = ty);
        assert!(
            text.contains(name) && text.contains(want) && text.contains(ty.name()),
            "{text}"
        );
    }
    assert!(bind(|t| named(t, "blk.0.attn_norm.weight").2 = GgmlType::BF16).is_ok());
    assert!(bind(|t| named(t, "blk.0.ffn_gate_inp.weight").2 = GgmlType::Mxfp4).is_ok());
}

#[test]
fn two_names_of_one_weight_are_refused() {
    let text = message(|tensors| {
        let copy = named(tensors, "blk.0.attn_kv.weight").clone();
        tensors.push(("blk.0.attn_kv_latent.weight".into(), copy.1, copy.2));
    });
    assert!(
        text.contains("attn_kv.weight") && text.contains("attn_kv_latent"),
        "{text}"
    );
}

#[test]
fn unknown_and_speculative_tensors_do_no_harm() {
    let extra = [
        "rope_freqs.weight",
        "mtp.0.e_proj.weight",
        "blk.4.nextn.enorm.weight",
    ];
    bind(|tensors| {
        tensors.extend(extra.map(|name| (name.to_owned(), vec![4], GgmlType::F32)));
    })
    .unwrap();
}

#[test]
fn a_hash_table_must_name_experts_that_exist() {
    let dir = tempfile::tempdir().unwrap();
    let hp = presets::tiny();
    let mut tensors = planned(&hp);
    named(&mut tensors, "blk.1.ffn_gate_tid2eid.weight").1[0] = 3;
    let gguf = model(dir.path(), &hp, &[], &tensors);
    let offset = gguf
        .tensor("blk.1.ffn_gate_tid2eid.weight")
        .unwrap()
        .info()
        .offset as usize;
    let good = fs::read(dir.path().join("m.gguf")).unwrap();
    let path = dir.path().join("changed.gguf");
    let with = |entry: usize, value: i32| {
        let mut bytes = good.clone();
        bytes[offset + 4 * entry..][..4].copy_from_slice(&value.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        ModelTensors::bind(&GgufModel::open(&path).unwrap(), &hp)
    };
    assert!(with(31, 7).is_ok());
    // The third entry of a row is not used.
    assert!(with(32, 99).is_ok());
    for (entry, value) in [(31, 8), (30, -1), (31, i32::MIN)] {
        let text = with(entry, value).unwrap_err().to_string();
        assert!(
            text.contains("blk.1.ffn_gate_tid2eid") && text.contains("token 10"),
            "{text}"
        );
    }
}

#[test]
fn speculative_blocks_are_taken_off_only_if_they_were_counted() {
    let dir = tempfile::tempdir().unwrap();
    let hp = presets::tiny();
    let nextn = ("deepseek4.nextn_predict_layers", Value::U32(1));
    let gguf = model(dir.path(), &hp, std::slice::from_ref(&nextn), &planned(&hp));
    assert_eq!(HyperParams::from_model(&gguf).unwrap(), hp);

    let counted = [nextn, ("deepseek4.block_count", Value::U32(5))];
    let mut tensors = planned(&hp);
    tensors.push(("blk.4.nextn.enorm.weight".into(), vec![256], GgmlType::F32));
    let gguf = model(dir.path(), &hp, &counted, &tensors);
    assert_eq!(HyperParams::from_model(&gguf).unwrap(), hp);
    ModelTensors::bind(&gguf, &hp).unwrap();
}
