//! `ds4-coord synth`: a model of random weights with real widths, to measure with.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use ds4_cli::{parse, print_line};
use ds4_common::model::synthetic::{Recipe, presets, write};

/// A known set of widths.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Preset {
    /// DeepSeek V4 Flash, about 3.8 GB per layer
    Flash,
    /// A few layers of tiny widths, for tests
    Tiny,
}

const EXAMPLES: &str = "\
Examples:
  ds4-coord synth --layers 4 --out flash4.gguf";

/// What to write.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct SynthArgs {
    /// File to write the model to
    #[arg(long, value_name = "FILE.gguf")]
    pub out: PathBuf,

    /// Widths of the model: flash (DeepSeek V4 Flash, about 3.8 GB per layer) or tiny (for tests)
    #[arg(
        long,
        value_enum,
        default_value = "flash",
        value_name = "NAME",
        hide_possible_values = true
    )]
    pub preset: Preset,

    /// Layers of the flash preset
    #[arg(
        long,
        default_value_t = 4,
        value_name = "N",
        value_parser = parse::count(1024)
    )]
    pub layers: usize,

    /// Seed of the random weights; equal seeds give equal files
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    pub seed: u64,
}

/// Writes the model and prints its size.
///
/// # Errors
/// The file cannot be written.
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
    print_line!(
        "{}: {bytes} bytes, {} layers",
        args.out.display(),
        hp.layers
    )?;
    Ok(())
}
