//! Runs the engine inside this process, without a network or an async runtime: feeds it a prompt,
//! shows the likeliest next tokens, and continues greedily.
//!
//!     cargo run --release -p ds4-examples --bin engine_in_process [MODEL.gguf [TOKEN…]]
//!
//! Without arguments it takes the reference model in `tests/golden`, whose weights are random: its
//! tokens mean nothing, but they are the same on every CPU.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use ds4_common::expert::ExpertStore;
use ds4_common::gguf::GgufModel;
use ds4_common::kernels::Kernels;
use ds4_common::model::{HyperParams, ModelTensors};
use ds4_coordinator::cluster::LocalBackend;
use ds4_coordinator::engine::{Chunk, Engine, EngineConfig, LogitsWanted, Numerics, Sequence};

const REFERENCE_MODEL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/golden/tiny-b/tiny-b.gguf"
);

/// Tokens to generate.
const GENERATED: usize = 8;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let model = PathBuf::from(args.next().unwrap_or_else(|| REFERENCE_MODEL.to_owned()));
    let mut prompt: Vec<u32> = args
        .map(|token| token.parse().with_context(|| format!("token {token:?}")))
        .collect::<Result<_>>()?;
    if prompt.is_empty() {
        prompt = vec![0, 17, 42, 99, 250, 7];
    }

    let mut engine = open(&model)?;
    println!(
        "a vocabulary of {} tokens, up to {} of them in a sequence",
        engine.vocab(),
        engine.context()
    );

    // A sequence holds the KV cache. It only grows: each step appends the tokens that it is given.
    let mut sequence = engine.new_sequence();
    println!("prompt: {prompt:?}");
    let mut logits = step(&mut engine, &mut sequence, &prompt)?;

    println!("likeliest next tokens:");
    for (token, logit) in top(&logits, 5) {
        println!("  {token:>6}  {logit:.4}");
    }

    // Greedy decoding: the likeliest token of each step is the input of the next one.
    let mut answer = Vec::new();
    while answer.len() < GENERATED {
        let (token, _) = top(&logits, 1)[0];
        answer.push(token);
        logits = step(&mut engine, &mut sequence, &[token])?;
    }
    println!("continuation: {answer:?}");
    Ok(())
}

/// Maps a model file and makes an engine that computes the experts itself.
fn open(model: &std::path::Path) -> Result<Engine> {
    // Opening maps the file and checks its header; nothing is copied, here or later.
    let gguf = GgufModel::open(model)?;
    let hp = HyperParams::from_model(&gguf)?;
    let tensors = ModelTensors::bind(&gguf, &hp)?;

    // The fastest kernels that this CPU has. All of them compute the same bits.
    let kernels = Kernels::detect();

    // Where routed experts are computed is the choice of a backend: this one uses the threads of
    // the engine, `ClusterBackend` asks expert nodes.
    let store = ExpertStore::new(&hp, &tensors)?;
    let experts = Arc::new(LocalBackend::new(store, kernels));

    let config = EngineConfig {
        kernels,
        numerics: Numerics::Full,
        threads: 0, // one for each core
        pin: false,
        context: 0, // the model's own limit
        rewind: 0,  // the sequence only grows
    };
    Ok(Engine::new(hp, &tensors, experts, &config)?)
}

/// Appends `tokens` to the sequence. Returns the logits that follow the last of them, one for each
/// token of the vocabulary.
fn step(engine: &mut Engine, sequence: &mut Sequence, tokens: &[u32]) -> Result<Vec<f32>> {
    // A step takes chunks of any number of sequences and reads each weight once for all of them.
    let chunk = Chunk {
        sequence,
        tokens,
        logits: LogitsWanted::Last,
        cancelled: None,
    };
    let output = engine.step(&mut [chunk])?;
    Ok(output.logits(0).to_vec())
}

/// The `count` likeliest tokens with their logits, likeliest first.
fn top(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut tokens: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1));
    tokens.truncate(count);
    tokens
}
