//! `ds4-expert bench`: how near the expert function comes to what memory and cores allow.
//!
//! Memory bandwidth of a shared machine drifts within seconds, so every timing of the expert
//! function is paired with probes right before it; medians over the rounds are reported.

mod report;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::builder::Resettable;
use clap::{Arg, Args};
use ds4_cli::{ModelFlag, ThreadArgs, parse, print};
use ds4_common::expert::{
    BatchError, BatchFields, ExpertBatch, ExpertInput, ExpertScratch, ExpertShape, ExpertStore,
    Route,
};
use ds4_common::gguf::{GgufModel, Tensor};
use ds4_common::kernels::{Activations, Kernels};
use ds4_common::model::{HyperParams, ModelTensors};
use ds4_common::quant::{ActivationFormat, GgmlType, Layout, PANEL_ROWS};
use ds4_common::random::SplitMix64;
use ds4_common::slice::Slice;
use rayon::ThreadPool;
use report::{Report, Row, Sample};

/// Bytes that one probe of the memory reads; far more than a cache holds.
const PROBE_BYTES: usize = 512 << 20;

/// Bytes of weights that the calls between two probes read, at least.
const CALL_BYTES: usize = 512 << 20;

/// Rounds of one probe of the multipliers: long enough that a busy machine slows it down as it does
/// the work.
const MULTIPLY_ROUNDS: u32 = 1 << 25;

/// Values of a Q4_K block and its bytes.
const BLOCK: (usize, usize) = (256, 144);

const EXAMPLES: &str = "\
Examples:
  ds4-expert bench --tokens 1,512
  ds4-expert bench -m node-0.gguf --isa avx2 --json";

/// What to measure, and on which weights.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct BenchArgs {
    /// Batch sizes, comma-separated
    #[arg(
        long,
        value_name = "TOKENS",
        value_delimiter = ',',
        default_value = "1,8,32,128,512",
        value_parser = parse::count(4096)
    )]
    pub tokens: Vec<usize>,

    /// Rounds of probes and work per batch size; medians are reported
    #[arg(
        long,
        value_name = "N",
        default_value_t = 9,
        value_parser = clap::value_parser!(u16).range(1..=999)
    )]
    pub rounds: u16,

    /// Layers of random experts, 3.6 GB each
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=64)
    )]
    pub layers: u16,

    /// Layouts of random weights, measured alternately; a file has a layout of its own
    #[arg(
        long,
        value_name = "LAYOUT",
        value_delimiter = ',',
        default_value = "plain,panels"
    )]
    pub layouts: Vec<Layout>,

    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,

    /// Weights in a file.
    #[command(flatten)]
    pub mapped: MappedArgs,

    /// Which threads compute.
    #[command(flatten)]
    pub threads: ThreadArgs,

    /// Kernels to measure [default: all of this CPU but the scalar ones]
    #[arg(
        long,
        value_name = "NAME",
        help_heading = "Engine",
        value_parser = parse::kernels
    )]
    pub isa: Option<Kernels>,
}

/// The file whose weights are measured, if any.
#[derive(Args, Debug)]
#[command(mut_arg("model", bench_model))]
pub struct MappedArgs {
    /// The flag of all commands, with another default.
    #[command(flatten)]
    pub model: ModelFlag,
}

/// Random weights are the default here, whatever the variable says.
fn bench_model(flag: Arg) -> Arg {
    flag.env(Resettable::Reset).help(
        "Model or slice whose mapped experts are read [default: random experts in anonymous memory]",
    )
}

/// Measures and prints a table or JSON.
///
/// # Errors
/// The model cannot be used, there is not enough memory for random experts, or standard output
/// cannot be written.
pub fn run(args: &BenchArgs) -> Result<()> {
    let threads = args.threads.resolve();
    let pool = threads.pool().build();
    let pool = pool.context("cannot start the compute threads")?;
    let stores = pool.install(|| open(args))?;
    let sets = match args.isa {
        Some(kernels) => vec![kernels],
        // Scalar code would take minutes and says nothing about the machine.
        None => Kernels::available().into_iter().skip(1).collect(),
    };
    ensure!(
        !sets.is_empty(),
        "this CPU has only the scalar kernels: choose them with --isa scalar"
    );
    let mut bench = Bench::new(&stores, &pool, usize::from(args.rounds));
    let mut rows = Vec::new();
    for kernels in sets {
        for &tokens in &args.tokens {
            rows.extend(bench.measure(kernels, tokens)?);
        }
    }
    let report = Report {
        source: if args.mapped.model.model.is_empty() {
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
    Ok(print(text)?)
}

/// The same weights in every order that is measured.
fn open(args: &BenchArgs) -> Result<Vec<ExpertStore>> {
    if args.mapped.model.model.is_empty() {
        let shape = ExpertShape {
            layers: usize::from(args.layers),
            hidden: 4096,
            width: 2048,
            experts: 256,
            experts_used: 6,
            ty: GgmlType::Q4K,
            layout: Layout::Plain,
        };
        let seed = AtomicU64::new(1);
        let store = ExpertStore::in_memory(shape, |bytes| {
            fill(seed.fetch_add(1, Ordering::Relaxed), bytes);
        })?;
        let stored = |layout| Ok(store.reinterpreted(layout)?);
        return args.layouts.iter().copied().map(stored).collect();
    }
    let gguf = GgufModel::open_parts(&args.mapped.model.model)?;
    if Slice::is_slice(&gguf) {
        let slice = Slice::of(gguf)?;
        for tensor in slice.head().tensors() {
            populate(&slice.tensor(tensor)?)?;
        }
        return Ok(vec![ExpertStore::from_slice(&slice)?]);
    }
    let hp = HyperParams::from_model(&gguf)?;
    let tensors = ModelTensors::bind(&gguf, &hp)?;
    for layer in &tensors.layers {
        for tensor in [&layer.gate_exps, &layer.up_exps, &layer.down_exps] {
            populate(tensor)?;
        }
    }
    Ok(vec![ExpertStore::new(&hp, &tensors)?])
}

fn populate(tensor: &Tensor) -> Result<()> {
    tensor
        .populate(0..tensor.bytes().len())
        .context("cannot read the experts")?;
    // A virtual machine may map pages of its own at their first touch, unknown to the guest.
    std::hint::black_box(Kernels::detect().read_through(tensor.bytes()));
    Ok(())
}

/// Random Q4_K blocks with scales that keep activations about their size, whether the bytes are
/// read as rows or as panels.
fn fill(seed: u64, bytes: &mut [u8]) {
    const SCALES: [u8; 4] = [0x00, 0x08, 0x00, 0x0c];
    let mut random = SplitMix64::new(seed);
    for word in bytes.as_chunks_mut::<8>().0 {
        *word = random.next_u64().to_le_bytes();
    }
    for block in bytes.chunks_exact_mut(BLOCK.1) {
        block[..4].copy_from_slice(&SCALES);
    }
    for panel in bytes.chunks_exact_mut(PANEL_ROWS * BLOCK.1) {
        panel.as_chunks_mut().0[..PANEL_ROWS].fill(SCALES);
    }
}

struct Bench<'a> {
    /// One an order of the weights.
    stores: &'a [ExpertStore],
    pool: &'a ThreadPool,
    rounds: usize,
    random: SplitMix64,
    scratch: ExpertScratch,
    out: Vec<f32>,
    /// Where the next probe starts to read.
    cursor: usize,
}

impl<'a> Bench<'a> {
    fn new(stores: &'a [ExpertStore], pool: &'a ThreadPool, rounds: usize) -> Self {
        Bench {
            stores,
            pool,
            rounds,
            random: SplitMix64::new(7),
            scratch: ExpertScratch::default(),
            out: Vec::new(),
            cursor: 0,
        }
    }

    fn bytes(&self) -> usize {
        (0..self.store().layers())
            .flat_map(|layer| self.store().weights(layer))
            .map(<[u8]>::len)
            .sum()
    }

    /// Bytes of one expert.
    fn expert_bytes(&self) -> usize {
        let experts = self.store().grid().experts as usize;
        let layer = self.store().weights(0);
        layer.map(<[u8]>::len).sum::<usize>() / experts.max(1)
    }

    /// A row for each order of the weights, measured in turns.
    fn measure(&mut self, kernels: Kernels, tokens: usize) -> Result<Vec<Row>> {
        let (hidden, experts_used) = (self.store().hidden(), self.store().experts_used());
        let operations = 2.0 * 3.0 * (hidden * self.store().width() * experts_used * tokens) as f64;
        let calls = CALL_BYTES.div_ceil(self.expert_bytes() * experts_used * tokens);
        let mut samples = vec![Vec::with_capacity(self.rounds); self.stores.len()];
        for store in self.stores {
            self.calls(store, kernels, tokens, calls)?;
        }
        for _ in 0..self.rounds {
            for (store, samples) in self.stores.iter().zip(&mut samples) {
                let memory_limit = self.probe_memory(kernels);
                let core_limit = self.probe_cores(kernels);
                let (seconds, experts) = self.calls(store, kernels, tokens, calls)?;
                samples.push(Sample {
                    milliseconds: seconds / (calls * tokens) as f64 * 1e3,
                    memory: (experts * self.expert_bytes()) as f64 / seconds / 1e9,
                    memory_limit,
                    operations: operations * calls as f64 / seconds / 1e9,
                    core_limit,
                });
            }
        }
        let rows = self.stores.iter().zip(&samples);
        Ok(rows
            .map(|(store, samples)| Row::new(kernels.name(), store.layout(), tokens, samples))
            .collect())
    }

    /// Any of them: they differ in the order of their bytes alone.
    fn store(&self) -> &'a ExpertStore {
        &self.stores[0]
    }

    /// Seconds of so many calls of the expert function, and the experts that they read.
    fn calls(
        &mut self,
        store: &ExpertStore,
        kernels: Kernels,
        tokens: usize,
        calls: usize,
    ) -> Result<(f64, usize)> {
        let batches: Vec<_> = (0..calls)
            .map(|_| self.batch(tokens))
            .collect::<Result<_, _>>()?;
        let experts = batches.iter().map(different_experts).sum();
        let rects = [store.grid().whole()];
        let Bench {
            pool, scratch, out, ..
        } = self;
        let start = Instant::now();
        for batch in &batches {
            pool.install(|| store.compute(kernels, batch, &rects, scratch, out))?;
        }
        Ok((start.elapsed().as_secs_f64(), experts))
    }

    fn batch(&mut self, tokens: usize) -> Result<ExpertBatch, BatchError> {
        let experts_used = self.store().experts_used();
        let experts = self.store().grid().experts as usize;
        let mut routes: Vec<Route> = Vec::with_capacity(tokens * experts_used);
        for _ in 0..tokens {
            let start = routes.len();
            while routes.len() < start + experts_used.min(experts) {
                let expert = self.random.below(experts) as u32;
                if routes[start..].iter().all(|r| r.expert != expert) {
                    routes.push(Route {
                        expert,
                        weight: 1.0 / experts_used as f32,
                    });
                }
            }
        }
        let values: Vec<f32> = (0..tokens * self.store().hidden())
            .map(|_| self.random.below(2001) as f32 / 1000.0 - 1.0)
            .collect();
        let mut activations = Activations::new();
        activations.set(ActivationFormat::Q8K, self.store().hidden(), &values);
        let fields = BatchFields {
            layer: self.random.below(self.store().layers()),
            tokens,
            routes,
            input: ExpertInput::from_activations(&activations),
            round: true,
        };
        ExpertBatch::new(*self.store().shape(), fields)
    }

    /// GB/s of all threads, each reading one stream of the same weights.
    fn probe_memory(&mut self, kernels: Kernels) -> f64 {
        let all: Vec<&[u8]> = (0..self.store().layers())
            .flat_map(|layer| self.store().weights(layer))
            .collect();
        let bytes = all[self.cursor % all.len()];
        let parts = (bytes.len() / PROBE_BYTES).max(1);
        let part = bytes.len().div_ceil(parts);
        let at = self.cursor / all.len() % parts * part;
        let bytes = &bytes[at..bytes.len().min(at + part)];
        self.cursor += 1;
        let start = Instant::now();
        let _ = self.pool.install(|| kernels.read_on_all_threads(bytes));
        bytes.len() as f64 / start.elapsed().as_secs_f64() / 1e9
    }

    /// GOP/s of all threads multiplying bytes in registers.
    fn probe_cores(&self, kernels: Kernels) -> f64 {
        let start = Instant::now();
        let multiply = || kernels.multiply_on_all_threads(MULTIPLY_ROUNDS);
        let operations = self.pool.install(multiply).unwrap_or(0);
        operations as f64 / start.elapsed().as_secs_f64() / 1e9
    }
}

fn different_experts(batch: &ExpertBatch) -> usize {
    let mut ids: Vec<u32> = batch.routes.iter().map(|r| r.expert).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ds4_common::threads::Threads;

    #[test]
    fn a_small_store_is_measured_and_reported() {
        let shape = ExpertShape {
            layers: 2,
            hidden: 256,
            width: 256,
            experts: 8,
            experts_used: 2,
            ty: GgmlType::Q4K,
            layout: Layout::Panels,
        };
        let panels = ExpertStore::in_memory(shape, |bytes| fill(3, bytes)).expect("store");
        let plain = panels.reinterpreted(Layout::Plain).expect("the same bytes");
        let stores = [plain, panels];
        let store = &stores[0];
        let pool = Threads::new(2, false).pool().build().expect("pool");
        let mut bench = Bench::new(&stores, &pool, 3);
        assert_eq!(bench.expert_bytes(), 3 * 256 * BLOCK.1);
        let batch = bench.batch(5).expect("a legal batch");
        assert!(different_experts(&batch) <= 8);
        let (seconds, experts) = bench.calls(store, Kernels::detect(), 5, 2).expect("calls");
        assert!(seconds > 0.0 && experts >= 4);
        assert!(bench.out.iter().all(|v| v.is_finite()));
        let rows = bench.measure(Kernels::detect(), 3).expect("figures");
        assert_eq!(rows.len(), 2);
        for row in rows {
            assert!(row.memory.is_finite() && row.memory > 0.0 && row.memory_limit > 0.0);
        }
    }
}
