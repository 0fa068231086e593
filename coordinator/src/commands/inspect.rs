//! `ds4-coord inspect`: what a model is, as the engine sees it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use ds4_common::gguf::GgufModel;
use ds4_common::kernels::Kernels;
use ds4_common::model::Fingerprint;
use ds4_common::slice::Slice;
use ds4_common::tiles::Grid;

use super::assembly::OpenModel;
use super::model_args::{ModelArgs, ModelFiles};

/// Which model to describe.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Model file, or a slice of one; the same as -m
    #[arg(value_name = "FILE", conflicts_with = "model")]
    pub files: Vec<PathBuf>,

    #[command(flatten)]
    pub model: ModelArgs,
}

/// # Errors
/// The model can't be opened.
pub fn run(args: &InspectArgs) -> Result<()> {
    let files = match args.files.is_empty() {
        true => args.model.files.clone(),
        false => ModelFiles {
            model: args.files.clone(),
        },
    };
    let gguf = GgufModel::open_parts(&files.paths()?)?;
    if Slice::is_slice(&gguf) {
        println!("slice file   {}", gguf.name().display());
        for (name, value) in Slice::of(gguf)?.head().describe() {
            println!("{name:<12} {value}");
        }
        return Ok(());
    }
    let model = OpenModel::open(&files)?;
    let hp = &model.hp;
    println!("model        {}", model.name);
    for path in model.gguf.paths() {
        println!("file         {}", path.display());
    }
    println!("fingerprint  {}", Fingerprint::of(&model.gguf, hp)?);
    println!(
        "shape        {} layers, width {}, vocabulary {}, context {}",
        hp.layers, hp.hidden, hp.vocab, hp.context
    );
    println!(
        "attention    {} heads of {}, window {}, ratios {:?}",
        hp.heads, hp.head_dim, hp.window, hp.compress_ratios
    );
    println!(
        "experts      {} of width {}, {} used, {} hash-routed layers; tile grid {}",
        hp.experts,
        hp.expert_width,
        hp.experts_used,
        hp.hash_layers,
        Grid::of(hp.experts, hp.expert_width)
    );
    let mut by_type: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for tensor in model.gguf.tensors() {
        let entry = by_type.entry(tensor.ty.name()).or_default();
        entry.0 += 1;
        entry.1 += tensor.bytes;
    }
    for (ty, (count, bytes)) in by_type {
        println!("{ty:<12} {count} tensors, {bytes} bytes");
    }
    println!(
        "kernels      {} of {}",
        args.model.kernels()?.name(),
        Kernels::summary()
    );
    Ok(())
}
