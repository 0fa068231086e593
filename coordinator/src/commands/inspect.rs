//! `ds4-coord inspect`: describes a model as the engine sees it, or a slice.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use ds4_cli::print;
use ds4_common::gguf::GgufModel;
use ds4_common::kernels::Kernels;
use ds4_common::model::Fingerprint;
use ds4_common::slice::Slice;
use ds4_common::tiles::Grid;

use super::assembly::OpenModel;
use super::model_args::{ModelArgs, ModelFiles};

const EXAMPLES: &str = "\
Examples:
  ds4-coord inspect V4-Flash-Q4.gguf
  ds4-coord inspect slices/node-0.gguf";

/// Which model to describe.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct InspectArgs {
    /// GGUF file of a model, or a slice; the same as -m
    #[arg(value_name = "FILE", conflicts_with = "model", value_delimiter = ',')]
    pub files: Vec<PathBuf>,

    /// The same as a flag, and the kernels to check.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// Prints the description.
///
/// # Errors
/// The model cannot be opened, or standard output cannot be written.
pub fn run(args: &InspectArgs) -> Result<()> {
    let files = match args.files.is_empty() {
        true => args.model.files.clone(),
        false => ModelFiles::from(args.files.clone()),
    };
    let gguf = GgufModel::open_parts(&files.paths()?)?;
    let mut text = String::new();
    if Slice::is_slice(&gguf) {
        writeln!(text, "slice file   {}", gguf.name().display())?;
        for (name, value) in Slice::of(gguf)?.head().describe() {
            writeln!(text, "{name:<12} {value}")?;
        }
    } else {
        describe_model(&mut text, &OpenModel::open(&files)?)?;
        let chosen = args.model.engine.isa.isa;
        let name = chosen.name();
        writeln!(text, "kernels      {name} of {}", Kernels::summary())?;
        for choice in chosen.loop_table().choices {
            writeln!(text, "loop         {choice}")?;
        }
    }
    Ok(print(text)?)
}

fn describe_model(text: &mut String, model: &OpenModel) -> Result<()> {
    let hp = &model.hp;
    writeln!(text, "model        {}", model.name)?;
    for path in model.gguf.paths() {
        writeln!(text, "file         {}", path.display())?;
    }
    let fingerprint = Fingerprint::of(&model.gguf, hp)?;
    writeln!(text, "fingerprint  {fingerprint}")?;
    writeln!(
        text,
        "shape        {} layers, width {}, vocabulary {}, context {}",
        hp.layers, hp.hidden, hp.vocab, hp.context
    )?;
    writeln!(
        text,
        "attention    {} heads of {}, window {}, ratios {:?}",
        hp.heads, hp.head_dim, hp.window, hp.compress_ratios
    )?;
    writeln!(
        text,
        "experts      {} of width {}, {} used, {} hash-routed layers; tile grid {}",
        hp.experts,
        hp.expert_width,
        hp.experts_used,
        hp.hash_layers,
        Grid::of(hp.experts, hp.expert_width)
    )?;
    let mut by_type: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for tensor in model.gguf.tensors() {
        let entry = by_type.entry(tensor.ty.name()).or_default();
        entry.0 += 1;
        entry.1 += tensor.bytes;
    }
    for (ty, (count, bytes)) in by_type {
        writeln!(text, "{ty:<12} {count} tensors, {bytes} bytes")?;
    }
    Ok(())
}
