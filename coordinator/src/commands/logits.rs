//! `ds4-coord logits`: writes the logits at every position of a list of tokens as a NumPy file.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use npyz::WriterBuilder;

use super::assembly::Assembly;
use super::model_args::ModelArgs;
use super::out_file::OutFile;
use crate::engine::{Chunk, LogitsWanted};

const EXAMPLES: &str = "\
Examples:
  echo '[0, 128, 7]' > ids.json
  ds4-coord logits -m V4-Flash-Q4.gguf --tokens ids.json --out logits.npy";

/// What to run, and where to write the result.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct LogitsArgs {
    /// File with a JSON list of token ids
    #[arg(long, value_name = "FILE.json")]
    pub tokens: PathBuf,

    /// File to write the logits to: f32, tokens x vocabulary
    #[arg(long, value_name = "FILE.npy")]
    pub out: PathBuf,

    /// Tokens that go through the model together; 0 takes all at once
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    pub chunk: usize,

    /// What runs.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// Computes and writes the logits.
///
/// # Errors
/// The tokens, the model or a node cannot be used, or the file cannot be written.
pub async fn run(args: LogitsArgs) -> Result<()> {
    let tokens = read_tokens(&args.tokens)?;
    // Created before the model is loaded: a mistyped folder should not cost a load.
    let out = OutFile::create(&args.out)
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    let assembly = Assembly::open(&args.model, args.model.security()?).await?;
    let vocab = assembly.model.hp.vocab;
    let last = tokens.iter().position(|&t| t as usize >= vocab);
    if let Some(at) = last {
        let token = tokens[at];
        anyhow::bail!(
            "{}: token {token} at index {at} is outside the vocabulary of {vocab}",
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
    // The engine blocks on its own threads, so it runs outside of the runtime's.
    tokio::task::spawn_blocking(move || write_logits(&args, out, assembly, &tokens)).await?
}

pub(super) fn read_tokens(path: &Path) -> Result<Vec<u32>> {
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    let tokens: Vec<u32> = serde_json::from_str(&text)
        .with_context(|| format!("{name} is not a JSON list of token ids"))?;
    ensure!(!tokens.is_empty(), "{name} lists no tokens");
    Ok(tokens)
}

fn write_logits(
    args: &LogitsArgs,
    out: OutFile,
    mut assembly: Assembly,
    tokens: &[u32],
) -> Result<()> {
    let engine = &mut assembly.engine;
    let failed = || format!("cannot write {}", args.out.display());
    let mut out = BufWriter::new(out);
    let shape = [tokens.len() as u64, engine.vocab() as u64];
    let mut npy = npyz::WriteOptions::new()
        .default_dtype()
        .shape(&shape)
        .writer(&mut out)
        .begin_nd()
        .with_context(failed)?;
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
            .with_context(failed)?;
    }
    npy.finish().with_context(failed)?;
    out.flush().with_context(failed)?;
    let out = out.into_inner().map_err(std::io::Error::from);
    out.and_then(OutFile::finish).with_context(failed)
}
