//! `ds4-coord logits`: the logits of every position of a list of tokens, as a NumPy file.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use npyz::WriterBuilder;

use super::assembly::Assembly;
use super::model_args::ModelArgs;
use super::out_file::OutFile;
use crate::engine::{Chunk, LogitsWanted};

/// What to run and where to write it.
#[derive(Args, Debug)]
pub struct LogitsArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// JSON list of token ids
    #[arg(long, value_name = "FILE.json")]
    pub tokens: PathBuf,

    /// Where to write the logits: f32, tokens x vocabulary
    #[arg(long, value_name = "FILE.npy")]
    pub out: PathBuf,

    /// Tokens that go through the model together; 0 takes all at once
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub chunk: usize,
}

/// # Errors
/// Names the file, the token or the node that is wrong.
pub async fn run(args: LogitsArgs) -> Result<()> {
    let tokens = read_tokens(&args.tokens)?;
    // Before the model: a mistyped folder should not cost a load.
    let out = OutFile::create(&args.out).with_context(|| args.out.display().to_string())?;
    let assembly = Assembly::open(&args.model).await?;
    let vocab = assembly.model.hp.vocab;
    let last = tokens.iter().position(|&t| t as usize >= vocab);
    if let Some(at) = last {
        let token = tokens[at];
        anyhow::bail!(
            "{}: token {token} at index {at} is outside of the vocabulary of {vocab}",
            args.tokens.display()
        );
    }
    let context = assembly.engine.context();
    ensure!(
        tokens.len() <= context,
        "{}: {} tokens exceed the context of {context}",
        args.tokens.display(),
        tokens.len()
    );
    // The engine blocks on its own threads: away from the runtime's.
    tokio::task::spawn_blocking(move || write_logits(&args, out, assembly, &tokens)).await?
}

fn read_tokens(path: &Path) -> Result<Vec<u32>> {
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| name.to_string())?;
    let tokens: Vec<u32> =
        serde_json::from_str(&text).with_context(|| format!("{name} is no list of token ids"))?;
    ensure!(!tokens.is_empty(), "{name} holds no tokens");
    Ok(tokens)
}

fn write_logits(
    args: &LogitsArgs,
    out: OutFile,
    mut assembly: Assembly,
    tokens: &[u32],
) -> Result<()> {
    let engine = &mut assembly.engine;
    let name = || args.out.display().to_string();
    let mut out = BufWriter::new(out);
    let shape = [tokens.len() as u64, engine.vocab() as u64];
    let mut npy = npyz::WriteOptions::new()
        .default_dtype()
        .shape(&shape)
        .writer(&mut out)
        .begin_nd()
        .with_context(name)?;
    let chunk = if args.chunk == 0 {
        tokens.len()
    } else {
        args.chunk
    };
    let mut sequence = engine.new_sequence();
    for part in tokens.chunks(chunk) {
        let mut chunks = [Chunk {
            sequence: &mut sequence,
            tokens: part,
            logits: LogitsWanted::All,
            cancelled: None,
        }];
        let output = engine.step(&mut chunks)?;
        npy.extend(output.logits(0).iter().copied())
            .with_context(name)?;
    }
    npy.finish().with_context(name)?;
    out.flush().with_context(name)?;
    let out = out.into_inner().map_err(std::io::Error::from);
    out.and_then(OutFile::finish).with_context(name)
}
