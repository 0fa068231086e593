//! `ds4-expert inspect`: what a model or a slice is, and how it could be cut.

use std::path::PathBuf;

use anyhow::Result;
use clap::{ArgGroup, Args};
use ds4_cli::{ModelFlag, print};
use ds4_common::gguf::GgufModel;
use ds4_common::kernels::Kernels;
use ds4_common::model::{Fingerprint, HyperParams};
use ds4_common::slice::Slice;
use ds4_common::tiles::Grid;

const EXAMPLES: &str = "\
Examples:
  ds4-expert inspect V4-Flash-Q4.gguf
  ds4-expert inspect /var/lib/ds4/node-0.gguf";

/// Which model or slice to describe.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("what").required(true).args(["files", "model"]),
    after_help = EXAMPLES
)]
pub struct InspectArgs {
    /// GGUF file, any part of a split model, all of its layer shards, or a slice; the same as -m
    #[arg(value_name = "FILE", value_delimiter = ',')]
    pub files: Vec<PathBuf>,

    /// The same as a flag.
    #[command(flatten)]
    pub model: ModelFlag,
}

/// Prints the shape of a model, or the tiles of a slice.
///
/// # Errors
/// The files are not a model that this software reads.
pub fn run(args: &InspectArgs) -> Result<()> {
    let files = match args.files.is_empty() {
        true => &args.model.model,
        false => &args.files,
    };
    let gguf = GgufModel::open_parts(files)?;
    if Slice::is_slice(&gguf) {
        return print_rows(&Slice::of(gguf)?.head().describe());
    }
    let hp = HyperParams::from_model(&gguf)?;
    let grid = Grid::of(hp.experts, hp.expert_width);
    let mut rows = vec![
        ("fingerprint", Fingerprint::of(&gguf, &hp)?.to_string()),
        ("layers", hp.layers.to_string()),
        ("hidden", hp.hidden.to_string()),
        (
            "experts",
            format!(
                "{} a layer, {} a token, {} wide",
                hp.experts, hp.experts_used, hp.expert_width
            ),
        ),
        ("tile grid", grid.to_string()),
        ("file bytes", gguf.file_bytes().to_string()),
        ("kernels", Kernels::summary()),
    ];
    let loops = Kernels::detect().loop_table().choices;
    rows.extend(loops.iter().map(|choice| ("loop", choice.to_string())));
    print_rows(&rows)
}

fn print_rows(rows: &[(&str, String)]) -> Result<()> {
    let lines = rows.iter();
    let text: String = lines
        .map(|(name, value)| format!("{name:<12} {value}\n"))
        .collect();
    Ok(print(text)?)
}
