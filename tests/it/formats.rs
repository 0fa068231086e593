//! Synthetic models in every weight format: logits are finite, bit-identical on every instruction
//! set and at every chunk size, and those of the values that the blocks stand for.

use std::path::{Path, PathBuf};

use ds4_common::kernels::Kernels;
use ds4_common::model::HyperParams;
use ds4_common::model::synthetic::presets::tiny;
use ds4_common::model::synthetic::{self, Formats, Recipe};
use ds4_common::quant::GgmlType;
use ds4_coordinator::engine::Numerics;
use ds4_tests::golden::distance;
use ds4_tests::rewrite::Draft;

use crate::golden::logits;
use crate::variants::{first_difference, open};

/// More tokens than one window of the 128-fold compressor.
const LONG: usize = 140;
const SHORT: usize = 36;

const WEIGHTS: [GgmlType; 11] = [
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::BF16,
    GgmlType::Q8_0,
    GgmlType::Q2K,
    GgmlType::Q3K,
    GgmlType::Q4K,
    GgmlType::Q5K,
    GgmlType::Q6K,
    GgmlType::Iq2Xxs,
    GgmlType::Mxfp4,
];

struct Model {
    what: String,
    path: PathBuf,
    vocab: usize,
    folder: tempfile::TempDir,
}

fn model(what: &str, hp: &HyperParams, formats: Formats) -> Model {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("model.gguf");
    let recipe = Recipe {
        formats,
        ..Recipe::default()
    };
    synthetic::write(&path, hp, &recipe).expect("write");
    Model {
        what: what.to_owned(),
        path,
        vocab: hp.vocab,
        folder,
    }
}

fn tokens(vocab: usize, count: usize) -> Vec<u32> {
    (0..count)
        .map(|i| ((i * i * 31 + i * 7 + 5) % vocab) as u32)
        .collect()
}

fn run(
    path: &Path,
    vocab: usize,
    numerics: Numerics,
    kernels: Kernels,
    sizes: &[usize],
) -> Vec<f32> {
    let mut engine = open(&[path.to_path_buf()], numerics, kernels);
    logits(&mut engine, &tokens(vocab, LONG), sizes)
}

impl Model {
    fn run(&self, numerics: Numerics, kernels: Kernels, sizes: &[usize]) -> Vec<f32> {
        run(&self.path, self.vocab, numerics, kernels, sizes)
    }

    fn assert_same(&self, found: &[f32], want: &[f32], what: &str) {
        let difference = first_difference(found, want, self.vocab);
        assert_eq!(difference, None, "{}: {what}", self.what);
    }

    /// Checks what holds for every format; returns the distance of full numerics from unrounded
    /// ones.
    fn check(&self) -> f64 {
        let best = Kernels::detect();
        let full = self.run(Numerics::Full, best, &[LONG]);
        assert!(full.iter().all(|v| v.is_finite()), "{}", self.what);
        let exact = self.run(Numerics::F32, best, &[LONG]);
        assert!(exact.iter().all(|v| v.is_finite()), "{}", self.what);
        // Instruction sets and chunk sizes vary together, to save runs.
        let available = Kernels::available();
        for (i, size) in [1, 17, SHORT].into_iter().enumerate() {
            let kernels = available[i % available.len()];
            let what = format!("{} in chunks of {size}", kernels.name());
            self.assert_same(&self.run(Numerics::Full, kernels, &[size]), &full, &what);
        }
        let scalar = self.run(Numerics::F32, available[0], &[17]);
        self.assert_same(&scalar, &exact, "unrounded scalar");
        self.check_twin(&exact, best);
        let far = distance(&full, &exact, self.vocab).expect("same shape");
        println!("{}: {far:?}", self.what);
        far.relative_rms_median
    }

    /// The model with the same values in F32.
    fn check_twin(&self, exact: &[f32], kernels: Kernels) {
        let mut draft = Draft::read(&self.path).expect("model");
        draft.to_f32(|_| true);
        let path = self.folder.path().join("twin.gguf");
        draft.write(&path).expect("twin");
        let twin = run(&path, self.vocab, Numerics::F32, kernels, &[LONG]);
        self.assert_same(&twin, exact, "dequantised twin");
    }
}

/// Rounding moves logits by 0.04 to 0.08 of their spread in these models, with all formats; a wrong
/// kernel moves them by all of it.
const FAR: f64 = 0.15;

#[test]
fn every_format_in_every_matrix() {
    for ty in WEIGHTS {
        let far = model(&format!("all {ty}"), &tiny(), Formats::uniform(ty)).check();
        assert!(far < FAR, "{ty}: {far}");
    }
}

#[test]
fn formats_may_be_mixed() {
    let base = Formats::PUBLISHED_Q4;
    let experts = |expert_up, expert_down| Formats {
        expert_up,
        expert_down,
        ..base
    };
    let mixed = [
        (
            "IQ2_XXS up, Q2_K down",
            experts(GgmlType::Iq2Xxs, GgmlType::Q2K),
        ),
        (
            "MXFP4 up, Q4_K down",
            experts(GgmlType::Mxfp4, GgmlType::Q4K),
        ),
        (
            "Q4_K up, MXFP4 down",
            experts(GgmlType::Q4K, GgmlType::Mxfp4),
        ),
        ("F16 up, Q6_K down", experts(GgmlType::F16, GgmlType::Q6K)),
        ("Q3_K up, Q8_0 down", experts(GgmlType::Q3K, GgmlType::Q8_0)),
        (
            "Q8_0 up, BF16 down",
            experts(GgmlType::Q8_0, GgmlType::BF16),
        ),
    ];
    for (what, formats) in mixed {
        let far = model(what, &tiny(), formats).check();
        assert!(far < FAR, "{what}: {far}");
    }
    let halves = Formats {
        vectors: GgmlType::BF16,
        position_bias: GgmlType::Q8_0,
        router: GgmlType::BF16,
        mixer: GgmlType::F32,
        compressor: GgmlType::Q8_0,
        indexer: GgmlType::Q4K,
        ..base
    };
    let far = model(
        "vectors and small matrices in other formats",
        &tiny(),
        halves,
    )
    .check();
    assert!(far < FAR, "{far}");
}

/// Gate and up of one layer in different formats, so that their inputs are rounded differently.
#[test]
fn gate_and_up_may_differ() {
    let hp = tiny();
    for (gate, up) in [
        (GgmlType::Q4K, GgmlType::Q8_0),
        (GgmlType::F16, GgmlType::Q4K),
        (GgmlType::Mxfp4, GgmlType::Iq2Xxs),
    ] {
        let uniform = |ty| Formats {
            expert_up: ty,
            ..Formats::PUBLISHED_Q4
        };
        let mut both = model(&format!("{gate} gate, {up} up"), &hp, uniform(gate));
        let other = model("", &hp, uniform(up));
        let mut draft = Draft::read(&both.path).expect("gate");
        let ups = Draft::read(&other.path).expect("up");
        for tensor in &mut draft.tensors {
            if tensor.name.contains("ffn_up_exps") {
                let from = ups.tensors.iter().find(|t| t.name == tensor.name);
                *tensor = from.expect("same names").clone();
            }
        }
        both.path = both.folder.path().join("both.gguf");
        draft.write(&both.path).expect("write");
        let far = both.check();
        assert!(far < FAR, "{}: {far}", both.what);
    }
}

/// The last tile of an expert is narrower than the others.
#[test]
fn expert_widths_need_not_be_multiples_of_a_tile() {
    for (width, ty) in [
        (320, GgmlType::F16),
        (320, GgmlType::Q8_0),
        (96, GgmlType::Mxfp4),
        (200, GgmlType::BF16),
        (544, GgmlType::Mxfp4),
    ] {
        let hp = HyperParams {
            expert_width: width,
            ..tiny()
        };
        let formats = Formats {
            shared: if ty == GgmlType::BF16 {
                ty
            } else {
                GgmlType::Q8_0
            },
            expert_up: ty,
            expert_down: ty,
            ..Formats::PUBLISHED_Q4
        };
        let far = model(&format!("{ty} experts of width {width}"), &hp, formats).check();
        assert!(far < FAR, "{ty} {width}: {far}");
    }
}

/// The best kernels against scalar, one step against steps of one.
fn check_shape(what: &str, hp: &HyperParams, formats: Formats) {
    let model = model(what, hp, formats);
    let full = model.run(Numerics::Full, Kernels::detect(), &[LONG]);
    assert!(full.iter().all(|v| v.is_finite()), "{what}");
    let scalar = Kernels::named("scalar").expect("always there");
    let stepped = model.run(Numerics::Full, scalar, &[1]);
    model.assert_same(&stepped, &full, "scalar steps of one");
    let exact = model.run(Numerics::F32, Kernels::detect(), &[SHORT]);
    let far = distance(&full, &exact, model.vocab).expect("same shape");
    println!("{what}: {far:?}");
    assert!(far.relative_rms_median < FAR, "{what}: {far:?}");
}

fn changed(change: impl FnOnce(&mut HyperParams)) -> HyperParams {
    let mut hp = tiny();
    change(&mut hp);
    hp
}

/// Shapes at the edges of what hyper-parameters allow.
#[test]
fn unusual_shapes() {
    let shapes = [
        (
            "one expert",
            changed(|hp| (hp.experts, hp.experts_used) = (1, 1)),
        ),
        (
            "all experts used",
            changed(|hp| (hp.experts, hp.experts_used) = (5, 5)),
        ),
        ("two shared experts", changed(|hp| hp.shared_experts = 2)),
        ("no hash layer", changed(|hp| hp.hash_layers = 0)),
        ("hash layers only", changed(|hp| hp.hash_layers = hp.layers)),
        ("one stream", changed(|hp| hp.streams = 1)),
        ("eight streams", changed(|hp| hp.streams = 8)),
        (
            "no clamp",
            changed(|hp| hp.clamp_routed.fill(f32::INFINITY)),
        ),
        (
            "weights as they are",
            changed(|hp| hp.normalize_weights = false),
        ),
        ("no yarn", changed(|hp| hp.yarn = None)),
        ("window of one", changed(|hp| hp.window = 1)),
        (
            "whole head rotated",
            changed(|hp| (hp.rope_dims, hp.index_dim) = (256, 256)),
        ),
        (
            "one group",
            changed(|hp| (hp.out_groups, hp.out_rank) = (1, 256)),
        ),
        ("top 1", changed(|hp| hp.index_top_k = 1)),
        (
            "top of more than there is",
            changed(|hp| hp.index_top_k = 1 << 20),
        ),
        ("odd vocabulary", changed(|hp| hp.vocab = 509)),
        (
            "one layer",
            changed(|hp| {
                (hp.layers, hp.hash_layers, hp.compress_ratios) = (1, 0, vec![4]);
                (hp.clamp_routed, hp.clamp_shared) = (vec![10.0], vec![10.0]);
            }),
        ),
        (
            "window only",
            changed(|hp| {
                hp.compress_ratios.fill(0);
                (hp.index_heads, hp.index_dim, hp.index_top_k) = (0, 0, 0);
            }),
        ),
    ];
    for (what, hp) in shapes {
        check_shape(what, &hp, Formats::PUBLISHED_Q4);
    }
}

/// Float weights have no blocks, so widths may be anything.
#[test]
fn unusual_widths() {
    let shapes = [
        ("odd hidden width", changed(|hp| hp.hidden = 201)),
        (
            "odd head width",
            changed(|hp| (hp.head_dim, hp.rope_dims) = (101, 30)),
        ),
        (
            "head width below a cache block",
            changed(|hp| (hp.head_dim, hp.rope_dims) = (40, 8)),
        ),
        (
            "odd ranks",
            changed(|hp| (hp.q_rank, hp.out_rank) = (77, 33)),
        ),
        ("odd expert width", changed(|hp| hp.expert_width = 259)),
        ("one inner value", changed(|hp| hp.expert_width = 1)),
        (
            "small indexer",
            changed(|hp| (hp.index_dim, hp.rope_dims, hp.index_heads) = (8, 8, 3)),
        ),
        (
            "odd number of heads",
            changed(|hp| (hp.heads, hp.out_groups) = (3, 3)),
        ),
        ("one head", changed(|hp| (hp.heads, hp.out_groups) = (1, 1))),
        ("two rotated dims", changed(|hp| hp.rope_dims = 2)),
    ];
    for (what, hp) in shapes {
        check_shape(what, &hp, Formats::uniform(GgmlType::F16));
    }
}
