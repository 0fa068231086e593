//! `ds4-coord inspect`: what a model is, as the engine sees it.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Args;
use ds4_common::kernels::Kernels;
use ds4_common::model::Fingerprint;
use ds4_common::tiles::Grid;

use super::assembly::OpenModel;
use super::model_args::ModelArgs;

/// Which model to describe.
#[derive(Args, Debug)]
pub struct InspectArgs {
    #[command(flatten)]
    pub model: ModelArgs,
}

/// # Errors
/// The model can't be opened.
pub fn run(args: &InspectArgs) -> Result<()> {
    let model = OpenModel::open(&args.model)?;
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
