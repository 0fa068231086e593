//! `ds4-coord slice`: cuts a model into one file per node.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use ds4_cli::print;
use ds4_common::slice::{
    Slice, SliceHead, SliceWriter, WholeModel, copy_tensor, ensure_room, file_name,
};

use super::assembly::OpenModel;
use super::cut_args::{CutArgs, LayoutArg};
use super::model_args::ModelFiles;
use super::progress::CopyBar;
use crate::share::Share;

const EXAMPLES: &str = "\
Examples:
  ds4-coord slice -m V4-Flash-Q4.gguf --nodes 4 --out slices
  ds4-coord slice -m V4-Flash-Q4.gguf --plan plan.toml --node b --out slices";

/// What to cut, how, and where to write it.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct SliceArgs {
    /// Write only the slice of this node
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,

    /// Folder to write the slices to, as NAME.gguf
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Replace files that hold something else
    #[arg(long)]
    pub force: bool,

    /// How the model is cut.
    #[command(flatten)]
    pub cut: CutArgs,

    /// In which order weights are written.
    #[command(flatten)]
    pub layout: LayoutArg,

    /// Which model.
    #[command(flatten)]
    pub files: ModelFiles,
}

/// Writes the slices that do not exist yet; an interrupted one is continued.
///
/// # Errors
/// The cut does not fit the model, other files are in the way, the disk is too small, or reading
/// or writing fails.
pub fn run(args: &SliceArgs) -> Result<()> {
    let model = OpenModel::open(&args.files)?.whole()?;
    let shares = args.cut.shares(model, args.layout.layout)?;
    let chosen = match &args.node {
        None => shares.all(),
        Some(node) => {
            let number = shares.find(node);
            let number = number.with_context(|| {
                format!("no node is named {node}; the cut has {}", shares.names())
            })?;
            &shares.all()[number..=number]
        }
    };
    let mut report = String::new();
    let written = write(args, shares.model(), chosen, &mut report);
    // Last: a reader that leaves early must not cost a slice.
    let printed = print(report);
    written?;
    Ok(printed?)
}

/// Writes the slices that do not exist yet, and reports all of them as far as it comes.
fn write(
    args: &SliceArgs,
    model: &WholeModel,
    shares: &[Share],
    report: &mut String,
) -> Result<()> {
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create the folder {}", args.out.display()))?;
    let wanted = wanted(args, shares, report)?;
    let needed = wanted
        .iter()
        .map(|(path, share)| SliceWriter::missing_bytes(path, &share.head))
        .sum();
    ensure_room(&args.out, needed)?;
    write_all(model, &wanted, report)
}

/// The slices that do not exist yet. Those that exist are reported and left alone.
fn wanted<'s>(
    args: &SliceArgs,
    shares: &'s [Share],
    report: &mut String,
) -> Result<Vec<(PathBuf, &'s Share)>> {
    let mut wanted = Vec::new();
    for share in shares {
        let path = args.out.join(file_name(&share.node)?);
        if exists(&path, &share.head) {
            *report += &format!("{}: already exists\n", path.display());
            continue;
        }
        if path.exists() && !args.force {
            bail!(
                "{} exists and is another file; use --force to replace it",
                path.display()
            );
        }
        wanted.push((path, share));
    }
    Ok(wanted)
}

fn exists(path: &Path, head: &SliceHead) -> bool {
    path.exists() && Slice::open(path).is_ok_and(|slice| slice.head().identity() == head.identity())
}

/// Writes and reports the slices, layer by layer for all nodes, so that the model is read from disk
/// once, as far as a layer fits into memory.
fn write_all(model: &WholeModel, wanted: &[(PathBuf, &Share)], report: &mut String) -> Result<()> {
    let total = wanted.iter().map(|(_, share)| bytes(&share.head)).sum();
    let mut found = CopyBar::new("checking existing parts", total);
    let mut writers = Vec::with_capacity(wanted.len());
    for (path, share) in wanted {
        let writer = SliceWriter::open(path, share.head.clone(), &mut |n| found.add(n))?;
        writers.push(writer);
    }
    found.finish();
    let left = writers.iter().map(|w| w.total_bytes() - w.done_bytes());
    let mut bar = CopyBar::new("slicing", left.sum());
    for layer in 0..model.layers() {
        for writer in &mut writers {
            while let Some((next, _)) = writer.position()
                && writer.head().tensors()[next].layer == layer
            {
                copy_tensor(model, writer, &mut |n| bar.add(n))?;
            }
        }
    }
    let rate = bar.finish();
    for writer in writers {
        let head = writer.finish()?;
        *report += &format!(
            "{}: {} bytes, {}\n",
            head.file().display(),
            head.file_bytes(),
            head.holdings()
        );
    }
    if rate > 0.0 {
        *report += &format!("{:.2} GB/s\n", rate / 1e9);
    }
    Ok(())
}

fn bytes(head: &SliceHead) -> u64 {
    head.tensors().iter().map(|t| t.bytes).sum()
}
