//! Logits compared with those of independent engines, and with our own at other chunk sizes.

use std::sync::Arc;

use ds4_common::expert::{BatchFields, ExpertBatch, ExpertInput, ExpertStore, Route, TileComputer};
use ds4_common::gguf::GgufModel;
use ds4_common::kernels::{Activations, Kernels};
use ds4_common::model::{HyperParams, ModelTensors};
use ds4_common::quant::ActivationFormat;
use ds4_coordinator::cluster::LocalBackend;
use ds4_coordinator::engine::{Chunk, Engine, EngineConfig, ExpertBackend, LogitsWanted, Numerics};
use ds4_tests::golden::{ALL, Distance, Reference, argmax, distance};

pub(crate) struct Loaded {
    pub(crate) hp: HyperParams,
    pub(crate) tensors: ModelTensors,
}

pub(crate) fn load(reference: Reference) -> Loaded {
    let gguf = GgufModel::open(&reference.model()).expect("model");
    let hp = HyperParams::from_metadata(gguf.metadata()).expect("hyper-parameters");
    let tensors = ModelTensors::bind(&gguf, &hp).expect("tensors");
    Loaded { hp, tensors }
}

fn engine_with(reference: Reference, numerics: Numerics, kernels: Kernels) -> Engine {
    let Loaded { hp, tensors } = load(reference);
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

/// An engine whose experts are computed by `backend`.
pub(crate) fn engine_on(
    reference: Reference,
    numerics: Numerics,
    backend: Arc<dyn ExpertBackend>,
) -> Engine {
    let Loaded { hp, tensors } = load(reference);
    let kernels = Kernels::detect();
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

pub(crate) fn engine(reference: Reference, numerics: Numerics) -> Engine {
    engine_with(reference, numerics, Kernels::detect())
}

/// Logits of every position, computed in chunks whose sizes cycle through `sizes`.
pub(crate) fn logits(engine: &mut Engine, tokens: &[u32], sizes: &[usize]) -> Vec<f32> {
    let mut sequence = engine.new_sequence();
    let mut all = Vec::new();
    let mut sizes = sizes.iter().cycle();
    let mut rest = tokens;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(*sizes.next().expect("cycle")));
        let mut chunks = [Chunk {
            sequence: &mut sequence,
            tokens: now,
            logits: LogitsWanted::All,
            cancelled: None,
        }];
        all.extend_from_slice(engine.step(&mut chunks).expect("step").logits(0));
        rest = later;
    }
    all
}

fn compare(reference: Reference, numerics: Numerics, text: &str, profile: &str) -> Distance {
    let mut engine = engine(reference, numerics);
    let tokens = reference.tokens(text).expect("tokens");
    let want = reference
        .floats(&format!("{text}.logits.{profile}.npy"))
        .expect("logits");
    let found = logits(&mut engine, &tokens, &[tokens.len()]);
    let distance = distance(&found, &want.values, engine.vocab()).expect("same shape");
    println!("{} {text} {profile}: {distance:?}", reference.0);
    distance
}

#[test]
fn unrounded_logits_match_three_engines() {
    for reference in ALL {
        for text in ["text", "rand"] {
            let d = compare(reference, Numerics::F32, text, "f32");
            assert!(d.max_abs <= 1e-3, "{} {text}: {d:?}", reference.0);
        }
    }
}

#[test]
fn rounded_caches_match_the_reference() {
    for reference in ALL {
        let d = compare(reference, Numerics::Cache, "text", "qat16");
        assert!(d.relative_rms_median <= 1e-2, "{}: {d:?}", reference.0);
    }
}

#[test]
fn shipped_numerics_match_the_reference() {
    for reference in ALL {
        for text in ["text", "rand"] {
            let d = compare(reference, Numerics::Full, text, "ds4");
            assert!(
                d.relative_rms_median <= 0.06,
                "{} {text}: {d:?}",
                reference.0
            );
            assert!(d.argmax_agreement >= 0.93, "{} {text}: {d:?}", reference.0);
        }
    }
}

#[test]
fn greedy_continuation_matches_the_reference() {
    for reference in ALL {
        let mut engine = engine(reference, Numerics::F32);
        let tokens = reference.tokens("text").expect("tokens");
        let (prompt, want) = reference.greedy().expect("greedy");
        let mut sequence = engine.new_sequence();
        let mut next = tokens[..prompt].to_vec();
        let mut found = Vec::new();
        while found.len() < want.len() {
            let mut chunks = [Chunk {
                sequence: &mut sequence,
                tokens: &next,
                logits: LogitsWanted::Last,
                cancelled: None,
            }];
            let token = argmax(engine.step(&mut chunks).expect("step").logits(0)) as u32;
            found.push(token);
            next = vec![token];
        }
        assert_eq!(found, want, "{}", reference.0);
    }
}

#[test]
fn chunk_sizes_do_not_change_a_bit() {
    for reference in ALL {
        for numerics in [Numerics::Full, Numerics::F32] {
            let mut engine = engine(reference, numerics);
            let tokens = reference.tokens("text").expect("tokens");
            let whole = logits(&mut engine, &tokens, &[tokens.len()]);
            for sizes in [&[1][..], &[37], &[3, 64, 1, 129, 2]] {
                let chunked = logits(&mut engine, &tokens, sizes);
                let first = whole
                    .iter()
                    .zip(&chunked)
                    .position(|(a, b)| a.to_bits() != b.to_bits());
                let vocab = engine.vocab();
                assert_eq!(
                    first.map(|i| i / vocab),
                    None,
                    "{} {numerics} {sizes:?}",
                    reference.0
                );
            }
        }
    }
}

#[test]
fn instruction_sets_do_not_change_a_bit() {
    for reference in ALL {
        let tokens = &reference.tokens("rand").expect("tokens")[..150];
        let mut by_isa = Kernels::available().into_iter().map(|kernels| {
            let mut engine = engine_with(reference, Numerics::Full, kernels);
            (kernels.name(), logits(&mut engine, tokens, &[40]))
        });
        let (_, first) = by_isa.next().expect("at least scalar");
        for (name, other) in by_isa {
            assert!(
                first
                    .iter()
                    .zip(&other)
                    .all(|(a, b)| a.to_bits() == b.to_bits()),
                "{} on {name}",
                reference.0
            );
        }
    }
}

#[test]
fn neighbours_in_a_batch_do_not_change_a_bit() {
    for reference in ALL {
        let mut engine = engine(reference, Numerics::Full);
        let text = reference.tokens("text").expect("tokens");
        let rand = reference.tokens("rand").expect("tokens");
        let alone = [
            logits(&mut engine, &text[..150], &[150]),
            logits(&mut engine, &rand[..180], &[180]),
        ];
        let mut sequences = [engine.new_sequence(), engine.new_sequence()];
        let mut together = [Vec::new(), Vec::new()];
        // One sequence prefills while the other takes single steps, with changing chunk sizes.
        let mut at = [0, 0];
        let mut round = 0;
        while at[0] < 150 || at[1] < 180 {
            let [first, second] = &mut sequences;
            let sizes = [[1, 31], [17, 1], [1, 1]][round % 3];
            let ends = [(at[0] + sizes[0]).min(150), (at[1] + sizes[1]).min(180)];
            let mut chunks = Vec::new();
            let mut owners = Vec::new();
            for (i, (sequence, tokens)) in [(first, &text), (second, &rand)].into_iter().enumerate()
            {
                if at[i] < ends[i] {
                    chunks.push(Chunk {
                        sequence,
                        tokens: &tokens[at[i]..ends[i]],
                        logits: LogitsWanted::All,
                        cancelled: None,
                    });
                    owners.push(i);
                }
            }
            let output = engine.step(&mut chunks).expect("step");
            for (chunk, &owner) in owners.iter().enumerate() {
                together[owner].extend_from_slice(output.logits(chunk));
            }
            at = ends;
            round += 1;
        }
        for (alone, together) in alone.iter().zip(&together) {
            assert!(
                alone
                    .iter()
                    .zip(together)
                    .all(|(a, b)| a.to_bits() == b.to_bits())
            );
            assert_eq!(alone.len(), together.len());
        }
    }
}

/// The quantised expert path alone, with the reference's own inputs.
#[test]
fn routed_experts_match_the_reference() {
    for reference in [Reference("tiny-a"), Reference("tiny-b")] {
        let Loaded { hp, tensors } = load(reference);
        let store = ExpertStore::new(&hp, &tensors).expect("experts");
        let shape = *store.shape();
        let mut computer = TileComputer::new(store, Kernels::detect());
        let array = |name: &str| {
            reference
                .floats(&format!("details.ds4.{name}.npy"))
                .expect(name)
        };
        let (norms, weights, want) = (
            array("ffn_norm"),
            array("router_weights"),
            array("routed_out"),
        );
        let experts = reference
            .ints("details.ds4.router_experts.npy")
            .expect("experts");
        let positions = norms.shape[1];
        let (mut exact, mut total) = (0, 0);
        for layer in 0..hp.layers {
            let slice = |a: &[f32], width: usize| {
                a[layer * positions * width..(layer + 1) * positions * width].to_vec()
            };
            let mut input = Activations::new();
            input.set(
                ActivationFormat::Q8K,
                hp.hidden,
                &slice(&norms.values, hp.hidden),
            );
            let at = layer * positions * hp.experts_used;
            let fields = BatchFields {
                layer,
                tokens: positions,
                routes: slice(&weights.values, hp.experts_used)
                    .into_iter()
                    .zip(&experts.values[at..])
                    .map(|(weight, &expert)| Route {
                        expert: expert as u32,
                        weight,
                    })
                    .collect(),
                input: ExpertInput::from_activations(&input),
                round: true,
            };
            let batch = ExpertBatch::new(shape, fields).expect("a legal batch");
            let mut out = Vec::new();
            let rects = [shape.grid.whole()];
            computer.compute(&batch, &rects, &mut out).expect("compute");
            for (found, want) in out
                .chunks_exact(hp.hidden)
                .zip(slice(&want.values, hp.hidden).chunks(hp.hidden))
            {
                let worst = found
                    .iter()
                    .zip(want)
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, f32::max);
                assert!(worst <= 5e-3, "{} layer {layer}: {worst}", reference.0);
                exact += usize::from(worst <= 1e-5);
                total += 1;
            }
        }
        assert!(
            exact * 10 >= total * 9,
            "{}: {exact} of {total} rows to 1e-5",
            reference.0
        );
    }
}
