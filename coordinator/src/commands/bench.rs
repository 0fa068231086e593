//! `ds4-coord bench`: speed of prefill and decode, where the time goes, and memory in use.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use super::assembly::Assembly;
use super::model_args::ModelArgs;
use crate::engine::{Chunk, Engine, LogitsWanted, Sequence, Stage, StageTimes};

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
    // Once unmeasured, so that weights are mapped and buffers have their size.
    run_phases(args, engine)?;
    let phases = run_phases(args, engine)?;
    for phase in &phases {
        phase.print();
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

/// One measured phase.
struct Phase {
    name: &'static str,
    tokens: usize,
    time: Duration,
    stages: [Duration; Stage::ALL.len()],
}

impl Phase {
    fn print(&self) {
        let seconds = self.time.as_secs_f64();
        println!(
            "{:8} {:6} tokens {:9.1} ms {:9.2} tokens/s",
            self.name,
            self.tokens,
            seconds * 1e3,
            self.tokens as f64 / seconds
        );
        for (stage, time) in Stage::ALL.into_iter().zip(self.stages) {
            let share = 100.0 * time.as_secs_f64() / seconds;
            println!("    {:18} {share:5.1} %", stage.name());
        }
    }
}

/// Prefill of all sequences, then their decode side by side.
fn run_phases(args: &BenchArgs, engine: &mut Engine) -> Result<Vec<Phase>> {
    let vocab = engine.vocab();
    let token = |sequence: usize, i: usize| ((sequence * 31 + i * 7919) % vocab) as u32;
    let mut sequences: Vec<Sequence> = (0..args.sequences).map(|_| engine.new_sequence()).collect();
    let prefill = timed(engine, "prefill", args.prompt * args.sequences, |engine| {
        for (s, sequence) in sequences.iter_mut().enumerate() {
            let prompt: Vec<u32> = (0..args.prompt).map(|i| token(s, i)).collect();
            for part in prompt.chunks(args.chunk) {
                engine.step(&mut [Chunk {
                    sequence,
                    tokens: part,
                    logits: LogitsWanted::Last,
                    cancelled: None,
                }])?;
            }
        }
        Ok(())
    })?;
    let decode = timed(engine, "decode", args.decode * args.sequences, |engine| {
        for i in 0..args.decode {
            let tokens: Vec<[u32; 1]> = (0..args.sequences)
                .map(|s| [token(s, args.prompt + i)])
                .collect();
            let mut chunks: Vec<Chunk<'_>> = sequences
                .iter_mut()
                .zip(&tokens)
                .map(|(sequence, tokens)| Chunk {
                    sequence,
                    tokens,
                    logits: LogitsWanted::Last,
                    cancelled: None,
                })
                .collect();
            engine.step(&mut chunks)?;
        }
        Ok(())
    })?;
    Ok(vec![prefill, decode])
}

fn timed(
    engine: &mut Engine,
    name: &'static str,
    tokens: usize,
    work: impl FnOnce(&mut Engine) -> Result<()>,
) -> Result<Phase> {
    let before: StageTimes = engine.times().clone();
    let start = Instant::now();
    work(engine)?;
    let time = start.elapsed();
    let stages = Stage::ALL.map(|stage| engine.times().of(stage) - before.of(stage));
    Ok(Phase {
        name,
        tokens,
        time,
        stages,
    })
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
