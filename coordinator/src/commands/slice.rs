//! `ds4-coord slice`: one file a node.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use ds4_common::slice::{
    Slice, SliceHead, SliceWriter, WholeModel, copy_tensor, ensure_room, file_name,
};

use super::assembly::OpenModel;
use super::cut_args::{CutArgs, LayoutArg};
use super::model_args::ModelFiles;
use super::progress::CopyBar;
use crate::share::Share;

/// What to cut, how, and where to.
#[derive(Args, Debug)]
pub struct SliceArgs {
    #[command(flatten)]
    pub files: ModelFiles,

    #[command(flatten)]
    pub cut: CutArgs,

    #[command(flatten)]
    pub order: LayoutArg,

    /// Write the slice of this node alone
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,

    /// Folder for the slices, NAME.gguf each
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Replace files that are there but are other slices
    #[arg(long)]
    pub force: bool,
}

/// # Errors
/// The cut does not fit the model, files are in the way, the disk is too small, or reading or
/// writing fails.
pub fn run(args: &SliceArgs) -> Result<()> {
    let model = OpenModel::open(&args.files)?.whole()?;
    let shares = args.cut.shares(model, args.order.layout)?;
    let chosen = match &args.node {
        None => shares.all(),
        Some(node) => {
            let number = shares.find(node);
            let number = number
                .with_context(|| format!("there is no node {node}, but {}", shares.names()))?;
            &shares.all()[number..=number]
        }
    };
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("the folder {} cannot be made", args.out.display()))?;
    let wanted = wanted(args, chosen)?;
    let needed = wanted
        .iter()
        .map(|(path, share)| SliceWriter::missing_bytes(path, &share.head))
        .sum();
    ensure_room(&args.out, needed)?;
    write_all(shares.model(), &wanted)
}

/// The slices that are not there yet. What is there already is named and left alone.
fn wanted<'s>(args: &SliceArgs, shares: &'s [Share]) -> Result<Vec<(PathBuf, &'s Share)>> {
    let mut wanted = Vec::new();
    for share in shares {
        let path = args.out.join(file_name(&share.node)?);
        if is_there(&path, &share.head) {
            println!("{}: is there already", path.display());
            continue;
        }
        if path.exists() && !args.force {
            bail!(
                "{} is there and is another file; --force replaces it",
                path.display()
            );
        }
        wanted.push((path, share));
    }
    Ok(wanted)
}

fn is_there(path: &Path, head: &SliceHead) -> bool {
    path.exists() && Slice::open(path).is_ok_and(|slice| slice.head().identity() == head.identity())
}

/// Layer by layer for all nodes, so that the model is read from the disk once, as far as a layer
/// fits into memory.
fn write_all(model: &WholeModel, wanted: &[(PathBuf, &Share)]) -> Result<()> {
    let total = wanted.iter().map(|(_, share)| bytes(&share.head)).sum();
    let mut found = CopyBar::new("checking what is there", total);
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
        println!(
            "{}: {} bytes, {}",
            head.file().display(),
            head.file_bytes(),
            head.holdings()
        );
    }
    if rate > 0.0 {
        println!("{:.2} GB/s", rate / 1e9);
    }
    Ok(())
}

fn bytes(head: &SliceHead) -> u64 {
    head.tensors().iter().map(|t| t.bytes).sum()
}
