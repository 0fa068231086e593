//! `ds4-coord bench`: speed of prefill and decode, where the time goes, and memory in use.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use ds4_common::kernels::Kernels;

use super::assembly::Assembly;
use super::model_args::ModelArgs;
use crate::engine::{Chunk, Engine, LogitsWanted, Sequence, Stage, StageTimes};

/// Bytes of weights that are read before each decoded token, at least.
const PROBE_BYTES: usize = 128 << 20;

/// Rounds of multiplications before each step of a prompt.
const PROBE_ROUNDS: u32 = 1 << 22;

/// What to measure.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// Prompt tokens of each sequence
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    pub prompt: usize,

    /// Tokens decoded after the prompt
    #[arg(long, default_value_t = 32, value_name = "TOKENS")]
    pub decode: usize,

    /// Sequences that run side by side
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub sequences: usize,

    /// Prompt tokens in one step
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    pub chunk: usize,
}

/// # Errors
/// The model or a node can't be used.
pub async fn run(args: BenchArgs) -> Result<()> {
    ensure!(
        args.prompt > 0 && args.decode > 0 && args.sequences > 0 && args.chunk > 0,
        "--prompt, --decode, --sequences and --chunk must be at least 1"
    );
    let assembly = Assembly::open(&args.model).await?;
    tokio::task::spawn_blocking(move || measure(&args, assembly)).await?
}

fn measure(args: &BenchArgs, mut assembly: Assembly) -> Result<()> {
    let engine = &mut assembly.engine;
    println!(
        "{}, kernels {}, {} embedded nodes, {} named nodes",
        assembly.model.name,
        assembly.kernels.name(),
        assembly.embedded.len(),
        args.model.nodes.len()
    );
    let kernels = assembly.kernels;
    // Once unmeasured, so that weights are mapped and buffers have their size.
    run_phases(args, kernels, engine)?;
    for phase in run_phases(args, kernels, engine)? {
        phase.print(engine);
    }
    let (resident, file) = resident_memory();
    println!(
        "resident {} MB, of it {} MB mapped files; model files {} MB",
        resident / 1_000_000,
        file / 1_000_000,
        assembly.model.gguf.file_bytes() / 1_000_000
    );
    Ok(())
}

/// What a phase is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    /// GB/s of threads that only read weights.
    Memory,
    /// GOP/s of threads that only multiply bytes.
    Cores,
}

/// One measured phase.
struct Phase {
    name: &'static str,
    limit: Limit,
    /// Tokens of all steps together.
    tokens: usize,
    steps: Vec<Step>,
}

/// One call of the engine.
struct Step {
    tokens: usize,
    time: Duration,
    stages: [Duration; Stage::ALL.len()],
    /// What the machine could do right before, in units of the phase's limit.
    limit: f64,
}

impl Phase {
    fn print(&self, engine: &Engine) {
        let seconds: f64 = self.steps.iter().map(|step| step.time.as_secs_f64()).sum();
        let unit = match self.limit {
            Limit::Memory => "GB/s",
            Limit::Cores => "GOP/s",
        };
        println!(
            "{:8} {:6} tokens {:9.1} ms {:9.2} tokens/s, limit {:.1} {unit}",
            self.name,
            self.tokens,
            seconds * 1e3,
            self.tokens as f64 / seconds,
            median(self.steps.iter().map(|step| step.limit))
        );
        for stage in Stage::ALL {
            let spent = |step: &Step| step.stages[stage as usize].as_secs_f64();
            let share = 100.0 * self.steps.iter().map(spent).sum::<f64>() / seconds;
            let milliseconds = median(self.steps.iter().map(|step| 1e3 * spent(step)));
            print!(
                "    {:18} {share:5.1} % {milliseconds:9.3} ms",
                stage.name()
            );
            let work = engine.work(stage);
            if work.bytes > 0 {
                let rate = |step: &Step| {
                    let done = match self.limit {
                        Limit::Memory => work.bytes,
                        Limit::Cores if stage == Stage::Head => 2 * work.weights,
                        Limit::Cores => 2 * work.weights * step.tokens as u64,
                    };
                    done as f64 / spent(step) / 1e9
                };
                let rates = median(self.steps.iter().map(rate));
                let shares = median(self.steps.iter().map(|step| rate(step) / step.limit));
                print!(" {rates:8.1} {unit} {:5.1} %", 100.0 * shares);
            }
            println!();
        }
    }
}

/// The middle value, or 0 of none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Prefill of all sequences, then their decode side by side.
fn run_phases(args: &BenchArgs, kernels: Kernels, engine: &mut Engine) -> Result<[Phase; 2]> {
    let vocab = engine.vocab();
    let token = |sequence: usize, i: usize| ((sequence * 31 + i * 7919) % vocab) as u32;
    let mut sequences: Vec<Sequence> = (0..args.sequences).map(|_| engine.new_sequence()).collect();
    let mut prefill = Phase {
        name: "prefill",
        limit: Limit::Cores,
        tokens: args.prompt * args.sequences,
        steps: Vec::new(),
    };
    let mut probe = Probe { kernels, at: 0 };
    for (s, sequence) in sequences.iter_mut().enumerate() {
        let prompt: Vec<u32> = (0..args.prompt).map(|i| token(s, i)).collect();
        for tokens in prompt.chunks(args.chunk) {
            let limit = probe.cores(engine);
            let mut chunk = [chunk_of(sequence, tokens)];
            prefill.steps.push(timed(engine, &mut chunk, limit)?);
        }
    }
    let mut decode = Phase {
        name: "decode",
        limit: Limit::Memory,
        tokens: args.decode * args.sequences,
        steps: Vec::new(),
    };
    for i in 0..args.decode {
        let tokens: Vec<[u32; 1]> = (0..args.sequences)
            .map(|s| [token(s, args.prompt + i)])
            .collect();
        let mut chunks: Vec<Chunk<'_>> = sequences
            .iter_mut()
            .zip(&tokens)
            .map(|(sequence, tokens)| chunk_of(sequence, tokens))
            .collect();
        let limit = probe.memory(engine);
        decode.steps.push(timed(engine, &mut chunks, limit)?);
    }
    Ok([prefill, decode])
}

fn chunk_of<'a>(sequence: &'a mut Sequence, tokens: &'a [u32]) -> Chunk<'a> {
    Chunk {
        sequence,
        tokens,
        logits: LogitsWanted::Last,
        cancelled: None,
    }
}

fn timed(engine: &mut Engine, chunks: &mut [Chunk<'_>], limit: f64) -> Result<Step> {
    let before: StageTimes = engine.times().clone();
    let start = Instant::now();
    engine.step(chunks)?;
    let time = start.elapsed();
    Ok(Step {
        tokens: chunks.iter().map(|chunk| chunk.tokens.len()).sum(),
        time,
        stages: Stage::ALL.map(|stage| engine.times().of(stage) - before.of(stage)),
        limit,
    })
}

/// Measures what the machine can do at this moment: it drifts within seconds.
struct Probe {
    kernels: Kernels,
    /// Where the next look at the memory starts.
    at: usize,
}

impl Probe {
    /// GB/s of the engine's threads that stream through the dense weights.
    fn memory(&mut self, engine: &Engine) -> f64 {
        let all = engine.dense_bytes();
        let mut parts = Vec::new();
        let mut found = 0;
        while found < PROBE_BYTES && parts.len() < all.len() {
            let bytes = all[(self.at + parts.len()) % all.len()];
            found += bytes.len();
            parts.push(bytes);
        }
        self.at += parts.len();
        let start = Instant::now();
        engine.on_threads(|| {
            parts
                .iter()
                .for_each(|bytes| _ = self.kernels.read_on_all_threads(bytes));
        });
        found as f64 / start.elapsed().as_secs_f64() / 1e9
    }

    /// GOP/s of the engine's threads that multiply bytes in registers; 0 of scalar kernels.
    fn cores(&self, engine: &Engine) -> f64 {
        let start = Instant::now();
        let operations = engine.on_threads(|| self.kernels.multiply_on_all_threads(PROBE_ROUNDS));
        operations.map_or(0.0, |n| n as f64 / start.elapsed().as_secs_f64() / 1e9)
    }
}

/// Resident bytes of this process, and the part that is mapped files; zero where the system does
/// not tell.
fn resident_memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let bytes = |key| kilobytes(key).unwrap_or(0) * 1024;
    (bytes("VmRSS:"), bytes("RssFile:"))
}
