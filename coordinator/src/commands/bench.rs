//! `ds4-coord bench`: measures the speed of prefill and decode, the time of every stage, and memory
//! in use.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use ds4_cli::{parse, print, print_line};
use ds4_common::kernels::Kernels;

use super::assembly::Assembly;
use super::model_args::ModelArgs;
use crate::engine::{Chunk, Engine, LogitsWanted, Sequence, Stage, StageTimes};

/// Bytes of weights that are read before each decoded token, at least.
const PROBE_BYTES: usize = 128 << 20;

/// Rounds of multiplications before each step of a prompt.
const PROBE_ROUNDS: u32 = 1 << 22;

const EXAMPLES: &str = "\
Examples:
  ds4-coord synth --layers 4 --out flash4.gguf
  ds4-coord bench -m flash4.gguf --prompt 1024 --decode 64 --embedded 0";

/// The most of each number: more would be a slip.
const MOST: usize = 1 << 24;

/// What to measure.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct BenchArgs {
    /// Prompt tokens of each sequence
    #[arg(
        long,
        default_value_t = 512,
        value_name = "TOKENS",
        value_parser = parse::count(MOST)
    )]
    pub prompt: usize,

    /// Tokens to decode after the prompt
    #[arg(
        long,
        default_value_t = 32,
        value_name = "TOKENS",
        value_parser = parse::count(MOST)
    )]
    pub decode: usize,

    /// Sequences to run side by side
    #[arg(
        long,
        default_value_t = 1,
        value_name = "N",
        value_parser = parse::count(MOST)
    )]
    pub sequences: usize,

    /// Prompt tokens per step
    #[arg(
        long,
        default_value_t = 512,
        value_name = "TOKENS",
        value_parser = parse::count(MOST)
    )]
    pub chunk: usize,

    /// What runs.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// Measures and prints every phase.
///
/// # Errors
/// The model or a node cannot be used, or standard output cannot be written.
pub async fn run(args: BenchArgs) -> Result<()> {
    let assembly = Assembly::open(&args.model, args.model.security()?).await?;
    tokio::task::spawn_blocking(move || measure(&args, assembly)).await?
}

fn measure(args: &BenchArgs, mut assembly: Assembly) -> Result<()> {
    let engine = &mut assembly.engine;
    print_line!(
        "{}, kernels {}, {} embedded nodes, {} named nodes",
        assembly.model.name,
        assembly.kernels.name(),
        assembly.embedded.len(),
        args.model.cluster.nodes.len()
    )?;
    let kernels = assembly.kernels;
    // A first run is not measured: it maps weights and grows buffers.
    run_phases(args, kernels, engine)?;
    for phase in run_phases(args, kernels, engine)? {
        print(phase.report(engine))?;
    }
    let (resident, file) = resident_memory();
    print_line!(
        "resident memory {} MB ({} MB of it in mapped files); model files {} MB",
        resident / 1_000_000,
        file / 1_000_000,
        assembly.model.gguf.file_bytes() / 1_000_000
    )?;
    Ok(())
}

/// What bounds the speed of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PhaseLimit {
    /// GB/s of threads that only read weights.
    Memory,
    /// GOP/s of threads that only multiply bytes.
    Cores,
}

/// Prefill or decode, as measured.
struct BenchPhase {
    name: &'static str,
    limit: PhaseLimit,
    /// Tokens of all steps together.
    tokens: usize,
    steps: Vec<TimedStep>,
}

/// One call of the engine, as measured.
struct TimedStep {
    tokens: usize,
    time: Duration,
    stages: [Duration; Stage::ALL.len()],
    /// What the machine reached right before, in units of the phase's limit.
    limit: f64,
}

impl BenchPhase {
    /// A line for the phase, and one for each stage.
    fn report(&self, engine: &Engine) -> String {
        let mut text = String::new();
        let seconds: f64 = self.steps.iter().map(|step| step.time.as_secs_f64()).sum();
        let unit = match self.limit {
            PhaseLimit::Memory => "GB/s",
            PhaseLimit::Cores => "GOP/s",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:8} {:6} tokens {:9.1} ms {:9.2} tokens/s, limit {:.1} {unit}",
            self.name,
            self.tokens,
            seconds * 1e3,
            self.tokens as f64 / seconds,
            median(self.steps.iter().map(|step| step.limit))
        );
        for stage in Stage::ALL {
            let spent = |step: &TimedStep| step.stages[stage as usize].as_secs_f64();
            let share = 100.0 * self.steps.iter().map(spent).sum::<f64>() / seconds;
            let milliseconds = median(self.steps.iter().map(|step| 1e3 * spent(step)));
            let _ = write!(
                text,
                "    {:18} {share:5.1} % {milliseconds:9.3} ms",
                stage.name()
            );
            let work = engine.work(stage);
            if work.bytes > 0 {
                let rate = |step: &TimedStep| {
                    let done = match self.limit {
                        PhaseLimit::Memory => work.bytes,
                        PhaseLimit::Cores if stage == Stage::Head => 2 * work.weights,
                        PhaseLimit::Cores => 2 * work.weights * step.tokens as u64,
                    };
                    done as f64 / spent(step) / 1e9
                };
                let rates = median(self.steps.iter().map(rate));
                let shares = median(self.steps.iter().map(|step| rate(step) / step.limit));
                let _ = write!(text, " {rates:8.1} {unit} {:5.1} %", 100.0 * shares);
            }
            text.push('\n');
        }
        text
    }
}

/// The middle value, or 0 of none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Prefill of all sequences, then their decode side by side.
fn run_phases(args: &BenchArgs, kernels: Kernels, engine: &mut Engine) -> Result<[BenchPhase; 2]> {
    let vocab = engine.vocab();
    let token = |sequence: usize, i: usize| ((sequence * 31 + i * 7919) % vocab) as u32;
    let mut sequences: Vec<Sequence> = (0..args.sequences).map(|_| engine.new_sequence()).collect();
    let mut prefill = BenchPhase {
        name: "prefill",
        limit: PhaseLimit::Cores,
        tokens: args.prompt * args.sequences,
        steps: Vec::new(),
    };
    let mut probe = MachineProbe { kernels, at: 0 };
    for (s, sequence) in sequences.iter_mut().enumerate() {
        let prompt: Vec<u32> = (0..args.prompt).map(|i| token(s, i)).collect();
        for tokens in prompt.chunks(args.chunk) {
            let limit = probe.cores(engine);
            let mut chunk = [chunk_of(sequence, tokens)];
            prefill.steps.push(timed(engine, &mut chunk, limit)?);
        }
    }
    let mut decode = BenchPhase {
        name: "decode",
        limit: PhaseLimit::Memory,
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

fn timed(engine: &mut Engine, chunks: &mut [Chunk<'_>], limit: f64) -> Result<TimedStep> {
    let before: StageTimes = engine.times().clone();
    let start = Instant::now();
    engine.step(chunks)?;
    let time = start.elapsed();
    Ok(TimedStep {
        tokens: chunks.iter().map(|chunk| chunk.tokens.len()).sum(),
        time,
        stages: Stage::ALL.map(|stage| engine.times().of(stage) - before.of(stage)),
        limit,
    })
}

/// Measures what the machine can do at this moment, since that drifts within seconds.
struct MachineProbe {
    kernels: Kernels,
    /// The tensor at which the next probe of the memory starts.
    at: usize,
}

impl MachineProbe {
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

/// Resident bytes of this process, and how many of them are mapped files; 0 where the system does
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
