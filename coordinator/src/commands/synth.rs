//! `ds4-coord synth`: a model of random weights with real widths, to measure with.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use ds4_common::model::synthetic::{Recipe, presets, write};

/// A known set of widths.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Preset {
    /// DeepSeek V4 Flash, about 3.8 GB a layer.
    Flash,
    /// Widths of a test.
    Tiny,
}

/// What to write.
#[derive(Args, Debug)]
pub struct SynthArgs {
    /// Widths of the model
    #[arg(long, value_enum, default_value = "flash")]
    pub preset: Preset,

    /// Layers of the flash preset
    #[arg(long, default_value_t = 4)]
    pub layers: usize,

    /// Equal seeds give equal files
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Where to write the GGUF
    #[arg(long, value_name = "FILE.gguf")]
    pub out: PathBuf,
}

/// # Errors
/// The file can't be written.
pub fn run(args: &SynthArgs) -> Result<()> {
    let (name, hp) = match args.preset {
        Preset::Flash => ("synthetic-flash", presets::flash(args.layers)),
        Preset::Tiny => ("synthetic-tiny", presets::tiny()),
    };
    let recipe = Recipe {
        name: name.to_owned(),
        seed: args.seed,
        ..Recipe::default()
    };
    let bytes = write(&args.out, &hp, &recipe)?;
    println!(
        "{}: {bytes} bytes, {} layers",
        args.out.display(),
        hp.layers
    );
    Ok(())
}
