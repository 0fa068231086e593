//! `ds4-coord trace`: what is computed for one token, layer by layer, in a form that two machines,
//! builds or placements can be compared by with `diff`.

mod expert;
mod report;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use ds4_cli::print;
use ds4_common::expert::{ExpertBatch, ExpertStore, TileComputer};
use ds4_common::kernels::Kernels;

use super::assembly::Assembly;
use super::logits::read_tokens;
use super::model_args::{Audit, ModelArgs};
use crate::engine::{Chunk, Engine, LogitsWanted, Observation, Observer, Point};
use expert::ExpertName;
use report::{Item, Report, digest};

const EXAMPLES: &str = "\
Examples:
  # The same token on two placements: the first line that differs is where the fault is
  ds4-coord trace -m V4-Flash-Q4.gguf --tokens ids.json --embedded 0 > here.txt
  ds4-coord trace -m V4-Flash-Q4.gguf --tokens ids.json --nodes 10.0.0.11:50051 | diff here.txt -

  # Expert 17 of layer 3 on every instruction set of this machine and on the nodes
  ds4-coord trace --tokens ids.json --nodes 10.0.0.11:50051 --expert 3:17";

/// Which token to trace, and how to show it.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct TraceArgs {
    /// File with a JSON list of token ids
    #[arg(
        long,
        value_name = "FILE.json",
        required_unless_present = "prompt",
        conflicts_with = "prompt"
    )]
    pub tokens: Option<PathBuf>,

    /// Text instead of token ids; the tokenizer's first token is put before it
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,

    /// Position of the token to trace, from 0 [default: the last]
    #[arg(long, value_name = "N")]
    pub position: Option<usize>,

    /// Print the values behind each digest, with as many digits as tell them apart
    #[arg(long)]
    pub values: bool,

    /// Compute one expert alone on the token's input, with every instruction set of this machine
    /// and on every node that holds it, and compare the bits
    #[arg(long, value_name = "LAYER:ID", conflicts_with_all = ["values", "format"])]
    pub expert: Option<ExpertName>,

    /// How to print: text, or json (one object a line)
    #[arg(
        long,
        default_value = "text",
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    pub format: Format,

    /// What runs.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// How a trace is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A line for each item.
    Text,
    /// A JSON object for each item.
    Json,
}

/// Prints the trace of a token, or compares an expert.
///
/// # Errors
/// The tokens, the model or a node cannot be used, or what was computed in two places differs.
pub async fn run(mut args: TraceArgs) -> Result<()> {
    // What a node computes is to be seen, not mended.
    args.model.cluster.audit = Audit::Off;
    args.model.cluster.known_calls = false;
    let named = args.tokens.as_deref().map(read_tokens).transpose()?;
    let security = args.model.security()?;
    let assembly = Assembly::open(&args.model, security.clone()).await?;
    let tokens = match named {
        Some(tokens) => tokens,
        None => {
            let tokenizer = assembly.model.tokenizer()?;
            let text = args.prompt.as_deref().unwrap_or_default();
            [vec![tokenizer.bos()], tokenizer.encode(text)].concat()
        }
    };
    let position = position(&args, &tokens, &assembly)?;
    let nodes = match &assembly.cluster {
        Some(cluster) => cluster.names(),
        None => Vec::new(),
    };
    // The engine blocks on its own threads, so it runs outside of the runtime's.
    let traced = tokio::task::spawn_blocking(move || {
        let mut assembly = assembly;
        let seen = observe(&mut assembly.engine, &tokens[..=position]);
        seen.map(|seen| (assembly, tokens, seen))
    });
    let (assembly, tokens, seen) = traced.await??;
    match args.expert {
        Some(name) => {
            let batch = batch_of(&seen.batches, name.layer)?;
            expert::compare(name, batch, &assembly, &nodes, &security).await
        }
        None => {
            let report = tokio::task::spawn_blocking(move || {
                let token = tokens[position];
                report(&assembly, seen, position, token)
            });
            let (report, differing) = report.await??;
            print(report.text(args.format == Format::Json, args.values))?;
            match differing {
                None => Ok(()),
                Some(layer) => bail!(
                    "layer {layer}: the routed experts' sum is not what the model's file gives: \
                     `ds4-coord trace --expert {layer}:ID` tells which node computes otherwise"
                ),
            }
        }
    }
}

fn position(args: &TraceArgs, tokens: &[u32], assembly: &Assembly) -> Result<usize> {
    let source = args
        .tokens
        .as_deref()
        .map_or("--prompt".into(), Path::to_string_lossy);
    let position = args.position.unwrap_or(tokens.len() - 1);
    ensure!(
        position < tokens.len(),
        "--position {position} is beyond the {} tokens of {source}",
        tokens.len()
    );
    let context = assembly.engine.context();
    ensure!(
        position < context,
        "{source}: position {position} is beyond the context of {context} tokens"
    );
    Ok(position)
}

fn batch_of(batches: &[Arc<ExpertBatch>], layer: usize) -> Result<&ExpertBatch> {
    let batch = batches.iter().find(|batch| batch.layer == layer);
    batch.map(|batch| &**batch).with_context(|| {
        let layers = batches.len();
        format!("--expert: layer {layer} does not exist: the model has {layers} layers")
    })
}

/// What an engine showed of one token.
#[derive(Default)]
struct Seen {
    items: Vec<Item>,
    batches: Vec<Arc<ExpertBatch>>,
}

impl Observer for Seen {
    fn observe(&mut self, seen: Observation<'_>) {
        match seen {
            Observation::Values {
                layer,
                point,
                values,
            } => {
                self.items.push(Item::values(layer, point.name(), values));
            }
            Observation::Experts(batch) => self.batches.push(Arc::clone(batch)),
        }
    }
}

/// Tokens that go through the model together before the one that is traced.
const CHUNK: usize = 512;

/// Runs all tokens, and looks at the last one.
fn observe(engine: &mut Engine, tokens: &[u32]) -> Result<Seen> {
    let (before, traced) = tokens.split_at(tokens.len() - 1);
    let mut sequence = engine.new_sequence();
    let mut seen = Seen::default();
    for part in before.chunks(CHUNK) {
        engine.step(&mut [Chunk {
            sequence: &mut sequence,
            tokens: part,
            logits: LogitsWanted::None,
            cancelled: None,
        }])?;
    }
    let mut last = [Chunk {
        sequence: &mut sequence,
        tokens: traced,
        logits: LogitsWanted::Last,
        cancelled: None,
    }];
    engine.step_observed(&mut last, &mut seen)?;
    Ok(seen)
}

/// The trace, with what the coordinator's own file gives for the routed experts, and the first
/// layer where the expert backend gave something else.
fn report(
    assembly: &Assembly,
    seen: Seen,
    position: usize,
    token: u32,
) -> Result<(Report, Option<usize>)> {
    let model = &assembly.model;
    let store = ExpertStore::new(&model.hp, &model.tensors)?;
    let mut own = OwnExperts {
        hidden: store.hidden(),
        computer: TileComputer::new(store, assembly.kernels),
    };
    let mut report = Report::new(position, token);
    let mut differing = None;
    let mut batches = seen.batches.iter();
    for item in seen.items {
        let is_sum = item.name == Point::RoutedSum.name();
        let after_router = item.name == Point::RouterLogits.name();
        let (layer, sum) = (item.layer, item.digest.clone());
        report.add(item);
        if after_router && let Some(batch) = batches.next() {
            for (slot, route) in batch.routes_of(0).iter().enumerate() {
                report.add(Item::route(batch.layer, slot, *route));
            }
        }
        if is_sum && let Some(layer) = layer {
            let batch = &seen.batches[layer];
            for item in assembly.engine.on_threads(|| own.each(batch))? {
                report.add(item);
            }
            let whole = assembly.engine.on_threads(|| own.sum(batch))?;
            if digest(&whole) != sum {
                differing = differing.or(Some(layer));
            }
            report.add(Item::values(Some(layer), "experts.routed.own", &whole));
        }
    }
    Ok((report, differing))
}

/// Routed experts from the coordinator's own file.
struct OwnExperts {
    hidden: usize,
    computer: TileComputer,
}

impl OwnExperts {
    /// The sum over all experts of the batch's token.
    fn sum(&mut self, batch: &ExpertBatch) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        let whole = self.computer.store().grid().whole();
        self.computer.compute(batch, &[whole], &mut out)?;
        debug_assert_eq!(out.len(), self.hidden);
        Ok(out)
    }

    /// What each chosen expert contributes, one row for each block.
    fn each(&mut self, batch: &ExpertBatch) -> Result<Vec<Item>> {
        let grid = self.computer.store().grid();
        let item = |route: &ds4_common::expert::Route| {
            let tiles = expert::tiles(route.expert, 0..grid.blocks);
            let mut out = Vec::new();
            self.computer.compute(batch, &tiles, &mut out)?;
            let name = format!("expert[{}].own", route.expert);
            Ok(Item::values(Some(batch.layer), &name, &out))
        };
        batch.routes_of(0).iter().map(item).collect()
    }
}

/// The kernels of this machine, the scalar ones first.
fn all_kernels() -> Vec<Kernels> {
    let mut all = Kernels::available();
    all.sort_by_key(|kernels| kernels.name() != "scalar");
    all
}
