use super::*;
use crate::gguf::GgufModel;
use crate::model::{ModelTensors, read_floats};
use crate::quant::dequantize_row;

fn written(hp: &HyperParams, recipe: &Recipe) -> (tempfile::TempDir, GgufModel) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let bytes = write(&path, hp, recipe).unwrap();
    let gguf = GgufModel::open(&path).unwrap();
    assert_eq!(gguf.file_bytes(), bytes);
    (dir, gguf)
}

#[test]
fn a_model_of_each_format_loads_with_the_shapes_that_were_asked_for() {
    let hp = presets::tiny();
    for ty in GgmlType::ALL.into_iter().filter(|&ty| ty != GgmlType::I32) {
        let recipe = Recipe {
            formats: Formats::uniform(ty),
            ..Recipe::default()
        };
        let (_dir, gguf) = written(&hp, &recipe);
        assert_eq!(HyperParams::from_model(&gguf).unwrap(), hp);
        let tensors = ModelTensors::bind(&gguf, &hp).unwrap();
        assert_eq!(tensors.layers.len(), 4);
        assert_eq!(tensors.layers[1].gate_exps.ty(), ty);
        assert!(tensors.layers[0].compressor.is_none() && tensors.layers[0].tid2eid.is_some());
        assert!(tensors.layers[1].indexer.is_some() && tensors.layers[2].indexer.is_none());
        assert!(tensors.layers[2].compressor.is_some() && tensors.layers[2].exp_probs_b.is_some());
        for info in gguf.tensors().iter().filter(|t| t.ty != GgmlType::I32) {
            let tensor = gguf.tensor(&info.name).unwrap();
            assert!(read_floats(&tensor).is_ok(), "{} of {ty}", info.name);
        }
    }
}

#[test]
fn weights_have_the_wanted_spread() {
    for ty in GgmlType::ALL.into_iter().filter(|&ty| ty != GgmlType::I32) {
        for wanted in [1.0, 1.0 / 64.0] {
            let mut bytes = vec![0; ty.block_bytes() * (16384 / ty.block_elements())];
            Filler::weights(ty, wanted).fill(&mut SplitMix64::named(7, "spread"), &mut bytes);
            let mut values = vec![0.0; 16384];
            dequantize_row(ty, &bytes, &mut values);
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let rms = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
            let factor = if ty == GgmlType::Mxfp4 { 1.5 } else { 1.1 };
            assert!(
                rms < wanted * factor && rms > wanted / factor,
                "{ty}: {rms} for {wanted}"
            );
            assert!(mean.abs() < 0.1 * wanted, "{ty}: mean {mean} at {wanted}");
        }
    }
}

#[test]
fn bytes_depend_on_seed_and_name_and_do_not_repeat() {
    let data = |seed, name| {
        let mut out = Vec::new();
        let filler = Filler::weights(GgmlType::Q4K, 0.1);
        let total = 144 * 20_000;
        stream(&filler, SplitMix64::named(seed, name), total, &mut out).unwrap();
        assert_eq!(out.len() as u64, total);
        out
    };
    let one = data(1, "a");
    assert!(one == data(1, "a"));
    assert!(one != data(2, "a"));
    assert!(one != data(1, "b"));
    let piece = (1 << 20) / 144 * 144;
    assert!(one[..piece] != one[piece..2 * piece]);
}

#[test]
fn hash_tables_name_different_experts() {
    let mut bytes = vec![0; 4 * 6 * 100];
    Filler::table(6, 7).fill(&mut SplitMix64::named(1, "t"), &mut bytes);
    let (entries, _) = bytes.as_chunks::<4>();
    for row in entries.chunks_exact(6) {
        let mut ids: Vec<i32> = row.iter().map(|&b| i32::from_le_bytes(b)).collect();
        ids.sort_unstable();
        ids.dedup();
        assert!(ids.len() == 6 && ids[0] >= 0 && ids[5] < 7, "{ids:?}");
    }
}

#[test]
fn extra_keys_are_carried_and_a_format_that_does_not_fit_is_named() {
    let hp = presets::tiny();
    let key = "tokenizer.ggml.model";
    let extra = vec![(key.to_owned(), Value::String("gpt2".into()))];
    let (_dir, gguf) = written(
        &hp,
        &Recipe {
            extra,
            ..Recipe::default()
        },
    );
    assert_eq!(gguf.metadata().str(key), Ok("gpt2"));

    let narrow = HyperParams { q_rank: 96, ..hp };
    let recipe = Recipe {
        formats: Formats::uniform(GgmlType::Q4K),
        ..Recipe::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let error = write(&dir.path().join("m"), &narrow, &recipe)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("attn_q_b") && error.contains("96") && error.contains("Q4_K"),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn flash_has_the_published_size() {
    let hp = presets::flash(43);
    let formats = Formats::PUBLISHED_Q4;
    let bytes: u64 = layout::model(&hp)
        .iter()
        .map(|spec| {
            let dims = spec.shape.dims();
            let row = formats.of(spec.kind).row_bytes(dims[0]).unwrap();
            row * dims[1..].iter().product::<u64>()
        })
        .sum();
    assert_eq!(bytes, 164_628_167_004);
    assert_eq!(layout::model(&hp).len(), 1328);
    assert_eq!(hp.compress_ratios.iter().filter(|&&r| r == 4).count(), 21);
    assert_eq!(hp.compress_ratios[42], 4);
}
