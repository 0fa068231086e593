//! `ds4-expert bench`: how near the expert function comes to what memory and cores allow.
//!
//! Memory bandwidth of a shared machine drifts within seconds, so every timing of the expert
//! function is paired with one of a probe right before it; medians of the pairs are reported.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use ds4_common::expert::{
    ExpertBatch, ExpertInput, ExpertScratch, ExpertShape, ExpertStore, Route,
};
use ds4_common::gguf::GgufModel;
use ds4_common::kernels::{Activations, Kernels};
use ds4_common::model::{HyperParams, ModelTensors};
use ds4_common::quant::{ActivationFormat, GgmlType};
use ds4_common::threads::Threads;
use rayon::ThreadPool;
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::lifecycle::print;

/// Bytes that one probe of the memory reads; far more than a cache holds.
const PROBE_BYTES: usize = 512 << 20;

/// Bytes of weights that the calls between two probes read, at least.
const CALL_BYTES: usize = 512 << 20;

/// Rounds of one probe of the multipliers: long enough that a busy machine slows it down as it does
/// the work.
const MULTIPLY_ROUNDS: u32 = 1 << 25;

/// Values of a Q4_K block and its bytes.
const BLOCK: (usize, usize) = (256, 144);

/// What to measure, and on which weights.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Model whose mapped experts are read; without it, random ones in anonymous memory
    #[arg(short, long = "model", num_args = 1.., value_delimiter = ',')]
    pub models: Vec<PathBuf>,
    /// Layers of random experts, 3.6 GB each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub layers: u16,
    /// Compute threads; 0 takes one a core
    #[arg(long, env = "DS4_THREADS", default_value_t = 0, value_parser = crate::cli::threads)]
    pub threads: usize,
    /// Keep each compute thread on a core of its own
    #[arg(long, env = "DS4_PIN")]
    pub pin: bool,
    /// Kernels to measure; all of this machine without it
    #[arg(long, value_parser = crate::cli::kernels)]
    pub isa: Option<Kernels>,
    /// Measured pairs of probe and work a figure
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=999))]
    pub rounds: u16,
    /// Batch sizes that are reported in GB of weights a second
    #[arg(long, value_delimiter = ',', default_value = "1,8", value_parser = tokens)]
    pub decode: Vec<usize>,
    /// Batch sizes that are reported in operations a second
    #[arg(long, value_delimiter = ',', default_value = "32,128,512", value_parser = tokens)]
    pub prefill: Vec<usize>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// 1 to 4096.
fn tokens(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=4096) => Ok(n),
        _ => Err("expected a number from 1 to 4096".to_owned()),
    }
}

/// # Errors
/// The model can't be used, or there is no memory for random experts.
pub fn run(args: &BenchArgs) -> Result<()> {
    let pool = Threads::new(args.threads, args.pin)
        .pool()
        .build()
        .context("no compute threads")?;
    let store = pool.install(|| open(args))?;
    let sets = match args.isa {
        Some(kernels) => vec![kernels],
        // Scalar code would take minutes and says nothing about the machine.
        None => Kernels::available().into_iter().skip(1).collect(),
    };
    ensure!(
        !sets.is_empty(),
        "only scalar kernels here: name them by --isa scalar"
    );
    let mut bench = Bench::new(&store, &pool, usize::from(args.rounds));
    let mut rows = Vec::new();
    for kernels in sets {
        for &tokens in &args.decode {
            rows.push(bench.decode(kernels, tokens)?);
        }
        for &tokens in &args.prefill {
            rows.push(bench.prefill(kernels, tokens)?);
        }
    }
    let report = Report {
        source: if args.models.is_empty() {
            "random"
        } else {
            "mapped file"
        },
        bytes: bench.bytes(),
        threads: pool.current_num_threads(),
        rows,
    };
    let text = if args.json {
        report.json()
    } else {
        report.table()
    };
    print(&text).context("no output")
}

fn open(args: &BenchArgs) -> Result<ExpertStore> {
    if args.models.is_empty() {
        let shape = ExpertShape {
            layers: usize::from(args.layers),
            hidden: 4096,
            width: 2048,
            experts: 256,
            used: 6,
            ty: GgmlType::Q4K,
        };
        let seed = AtomicU64::new(1);
        return Ok(ExpertStore::in_memory(shape, |bytes| {
            fill(seed.fetch_add(1, Ordering::Relaxed), bytes);
        })?);
    }
    let gguf = GgufModel::open_parts(&args.models)?;
    let hp = HyperParams::from_model(&gguf)?;
    let tensors = ModelTensors::bind(&gguf, &hp)?;
    for layer in &tensors.layers {
        for tensor in [&layer.gate_exps, &layer.up_exps, &layer.down_exps] {
            tensor
                .populate(0..tensor.bytes().len())
                .context("cannot read the experts")?;
        }
    }
    Ok(ExpertStore::new(&hp, &tensors)?)
}

/// Random Q4_K blocks with scales that keep activations about their size.
fn fill(seed: u64, bytes: &mut [u8]) {
    const SCALES: [u8; 4] = [0x00, 0x08, 0x00, 0x0c];
    let mut random = Random(seed);
    for word in bytes.as_chunks_mut::<8>().0 {
        *word = random.next().to_le_bytes();
    }
    for block in bytes.chunks_exact_mut(BLOCK.1) {
        block[..4].copy_from_slice(&SCALES);
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// One measured figure: medians over the rounds.
struct Row {
    isa: &'static str,
    tokens: usize,
    /// Milliseconds a token and layer.
    milliseconds: f64,
    unit: &'static str,
    rate: f64,
    /// What the probe reached in the same moments; 0 where there is none.
    probe: f64,
    /// Median of the rounds' shares.
    share: f64,
}

struct Bench<'a> {
    store: &'a ExpertStore,
    pool: &'a ThreadPool,
    rounds: usize,
    random: Random,
    scratch: ExpertScratch,
    out: Vec<f32>,
    /// Where the next probe starts to read.
    cursor: usize,
}

impl<'a> Bench<'a> {
    fn new(store: &'a ExpertStore, pool: &'a ThreadPool, rounds: usize) -> Self {
        Bench {
            store,
            pool,
            rounds,
            random: Random(7),
            scratch: ExpertScratch::default(),
            out: Vec::new(),
            cursor: 0,
        }
    }

    fn bytes(&self) -> usize {
        (0..self.store.layers())
            .flat_map(|layer| self.store.weights(layer))
            .map(<[u8]>::len)
            .sum()
    }

    /// Bytes of one expert.
    fn expert_bytes(&self) -> usize {
        let experts = self.store.grid().experts as usize;
        let layer = self.store.weights(0);
        layer.iter().map(|w| w.len()).sum::<usize>() / experts.max(1)
    }

    fn decode(&mut self, kernels: Kernels, tokens: usize) -> Result<Row> {
        let calls = CALL_BYTES.div_ceil(self.expert_bytes() * self.store.experts_used() * tokens);
        self.calls(kernels, tokens, calls)?;
        let mut samples = Vec::with_capacity(self.rounds);
        for _ in 0..self.rounds {
            let probe = self.probe_memory(kernels);
            let (seconds, experts) = self.calls(kernels, tokens, calls)?;
            let rate = (experts * self.expert_bytes()) as f64 / seconds / 1e9;
            samples.push([seconds / (calls * tokens) as f64 * 1e3, rate, probe]);
        }
        Ok(row(kernels, tokens, "GB/s", &samples))
    }

    fn prefill(&mut self, kernels: Kernels, tokens: usize) -> Result<Row> {
        let (hidden, used) = (self.store.hidden(), self.store.experts_used());
        let operations = 2.0 * 3.0 * (hidden * self.store.width() * used * tokens) as f64;
        let calls = 128_usize.div_ceil(tokens);
        self.calls(kernels, tokens, 1)?;
        let mut samples = Vec::with_capacity(self.rounds);
        for _ in 0..self.rounds {
            let probe = self.probe_cores(kernels);
            let (seconds, _) = self.calls(kernels, tokens, calls)?;
            let rate = operations * calls as f64 / seconds / 1e9;
            samples.push([seconds / (calls * tokens) as f64 * 1e3, rate, probe]);
        }
        Ok(row(kernels, tokens, "GOP/s", &samples))
    }

    /// Seconds of so many calls of the expert function, and the experts that they read.
    fn calls(&mut self, kernels: Kernels, tokens: usize, calls: usize) -> Result<(f64, usize)> {
        let batches: Vec<_> = (0..calls).map(|_| self.batch(tokens)).collect();
        let experts = batches.iter().map(different_experts).sum();
        let rects = [self.store.grid().whole()];
        let Bench {
            store,
            pool,
            scratch,
            out,
            ..
        } = self;
        let start = Instant::now();
        for batch in &batches {
            pool.install(|| store.compute(kernels, batch, &rects, scratch, out))?;
        }
        Ok((start.elapsed().as_secs_f64(), experts))
    }

    fn batch(&mut self, tokens: usize) -> ExpertBatch {
        let used = self.store.experts_used();
        let experts = self.store.grid().experts as usize;
        let mut routes: Vec<Route> = Vec::with_capacity(tokens * used);
        for _ in 0..tokens {
            let start = routes.len();
            while routes.len() < start + used.min(experts) {
                let expert = self.random.below(experts) as u32;
                if routes[start..].iter().all(|r| r.expert != expert) {
                    routes.push(Route {
                        expert,
                        weight: 1.0 / used as f32,
                    });
                }
            }
        }
        let values: Vec<f32> = (0..tokens * self.store.hidden())
            .map(|_| self.random.below(2001) as f32 / 1000.0 - 1.0)
            .collect();
        let mut activations = Activations::new();
        activations.set(ActivationFormat::Q8K, self.store.hidden(), &values);
        ExpertBatch {
            layer: self.random.below(self.store.layers()),
            tokens,
            used,
            routes,
            input: ExpertInput::from_activations(&activations),
            round: true,
        }
    }

    /// GB/s of all threads, each reading one stream of the same weights.
    fn probe_memory(&mut self, kernels: Kernels) -> f64 {
        let threads = self.pool.current_num_threads();
        let all: Vec<&[u8]> = (0..self.store.layers())
            .flat_map(|layer| self.store.weights(layer))
            .collect();
        let bytes = all[self.cursor % all.len()];
        let parts = (bytes.len() / PROBE_BYTES).max(1);
        let part = bytes.len().div_ceil(parts);
        let at = self.cursor / all.len() % parts * part;
        let bytes = &bytes[at..bytes.len().min(at + part)];
        self.cursor += 1;
        let start = Instant::now();
        let sum = self.pool.install(|| {
            bytes
                .par_chunks(bytes.len().div_ceil(threads))
                .with_max_len(1)
                .map(|part| kernels.read_through(part))
                .reduce(|| 0, |a, b| a ^ b)
        });
        std::hint::black_box(sum);
        bytes.len() as f64 / start.elapsed().as_secs_f64() / 1e9
    }

    /// GOP/s of all threads multiplying bytes in registers.
    fn probe_cores(&self, kernels: Kernels) -> f64 {
        let start = Instant::now();
        let operations: u64 = self
            .pool
            .broadcast(|_| kernels.multiply_bytes(MULTIPLY_ROUNDS).unwrap_or(0))
            .iter()
            .sum();
        operations as f64 / start.elapsed().as_secs_f64() / 1e9
    }
}

fn different_experts(batch: &ExpertBatch) -> usize {
    let mut ids: Vec<u32> = batch.routes.iter().map(|r| r.expert).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.len()
}

/// Samples are milliseconds, rate and probe of one round.
fn row(kernels: Kernels, tokens: usize, unit: &'static str, samples: &[[f64; 3]]) -> Row {
    let column = |i: usize| median(samples.iter().map(|s| s[i]).collect());
    let share = |s: &[f64; 3]| if s[2] > 0.0 { s[1] / s[2] } else { 0.0 };
    Row {
        isa: kernels.name(),
        tokens,
        milliseconds: column(0),
        unit,
        rate: column(1),
        probe: column(2),
        share: median(samples.iter().map(share).collect()),
    }
}

/// The middle value, or 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

struct Report {
    source: &'static str,
    bytes: usize,
    threads: usize,
    rows: Vec<Row>,
}

impl Report {
    fn table(&self) -> String {
        let mut text = format!(
            "{:.1} GB of {} experts, {} threads\n{:<12} {:>6} {:>10} {:>9} {:<5} {:>9} {:>6}\n",
            self.bytes as f64 / 1e9,
            self.source,
            self.threads,
            "kernels",
            "tokens",
            "ms/token",
            "rate",
            "",
            "limit",
            "share"
        );
        for r in &self.rows {
            text += &format!(
                "{:<12} {:>6} {:>10.3} {:>9.1} {:<5} {:>9.1} {:>5.1}%\n",
                r.isa,
                r.tokens,
                r.milliseconds,
                r.rate,
                r.unit,
                r.probe,
                100.0 * r.share
            );
        }
        text
    }

    fn json(&self) -> String {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|r| {
                json!({
                    "kernels": r.isa,
                    "tokens": r.tokens,
                    "ms_per_token": r.milliseconds,
                    "unit": r.unit,
                    "rate": r.rate,
                    "limit": r.probe,
                    "share": r.share,
                })
            })
            .collect();
        let report = json!({
            "source": self.source,
            "weight_bytes": self.bytes,
            "threads": self.threads,
            "rows": rows,
        });
        format!("{report:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![9.0, 1.0, 4.0]), 4.0);
    }

    #[test]
    fn a_small_store_is_measured_and_reported() {
        let shape = ExpertShape {
            layers: 2,
            hidden: 256,
            width: 256,
            experts: 8,
            used: 2,
            ty: GgmlType::Q4K,
        };
        let store = ExpertStore::in_memory(shape, |bytes| fill(3, bytes)).expect("store");
        let pool = Threads::new(2, false).pool().build().expect("pool");
        let mut bench = Bench::new(&store, &pool, 3);
        assert_eq!(bench.expert_bytes(), 3 * 256 * BLOCK.1);
        let batch = bench.batch(5);
        batch.check(2, store.grid(), 256, 2).expect("a legal batch");
        assert!(different_experts(&batch) <= 8);
        let (seconds, experts) = bench.calls(Kernels::detect(), 5, 2).expect("calls");
        assert!(seconds > 0.0 && experts >= 4);
        assert!(bench.out.iter().all(|v| v.is_finite()));
        let report = Report {
            source: "random",
            bytes: bench.bytes(),
            threads: 2,
            rows: vec![row(Kernels::detect(), 1, "GB/s", &[[1.0, 20.0, 40.0]])],
        };
        let value: Value = serde_json::from_str(&report.json()).expect("JSON");
        assert_eq!(value["rows"][0]["share"], 0.5);
        assert!(report.table().contains("50.0%"));
    }
}
