//! `ds4-coord verify`: checks slices against their hashes, and against their model.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Arg, Args};
use ds4_cli::{ModelFlag, OutputError, print_line};
use ds4_common::model::Fingerprint;
use ds4_common::slice::{Slice, SliceError, verify};

use super::assembly::OpenModel;
use super::model_args::ModelFiles;
use super::progress::CopyBar;

const EXAMPLES: &str = "\
Examples:
  ds4-coord verify slices/*.gguf
  ds4-coord verify -m V4-Flash-Q4.gguf slices/node-0.gguf";

/// What to check.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, mut_arg("model", model_of_slices))]
pub struct VerifyArgs {
    /// Slices to check
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// The model of the slices.
    #[command(flatten)]
    pub model: ModelFlag,
}

/// One value, since slices may follow it.
fn model_of_slices(flag: Arg) -> Arg {
    flag.num_args(1)
        .help("Model that the slices must be cut from [default: any]")
}

/// Prints everything that is wrong, file by file. Checks all files even if nothing reads along,
/// since the exit code is for all of them.
///
/// # Errors
/// A file is damaged, cannot be read, or belongs to another model.
pub fn run(args: &VerifyArgs) -> Result<()> {
    let expected = match args.model.model.is_empty() {
        true => None,
        false => {
            let files = ModelFiles::from(args.model.model.clone());
            Some(OpenModel::open(&files)?.whole()?.fingerprint())
        }
    };
    let mut damaged = 0;
    for file in &args.files {
        let printed = match check(file, expected) {
            Ok(summary) => print_line!("{}: {summary}", file.display()),
            Err(errors) => {
                damaged += 1;
                errors.iter().try_for_each(|error| print_line!("{error}"))
            }
        };
        if let Err(error) = printed
            && !OutputError::is_closed_pipe(&error)
        {
            return Err(error.into());
        }
    }
    match (damaged, args.files.len()) {
        (0, _) => Ok(()),
        (_, 1) => bail!("the slice failed verification"),
        (_, all) => bail!("{damaged} of {all} slices failed verification"),
    }
}

/// A summary of an intact slice, or everything that is wrong with it.
fn check(file: &Path, expected: Option<Fingerprint>) -> Result<String, Vec<SliceError>> {
    let slice = Slice::open(file).map_err(|error| vec![error])?;
    let found = slice.head().fingerprint();
    if let Some(expected) = expected.filter(|expected| *expected != found) {
        return Err(vec![SliceError::Foreign {
            file: file.to_path_buf(),
            expected,
            found,
        }]);
    }
    let mut bar = CopyBar::new("verifying", slice.weight_bytes());
    let faults = verify(&slice, &mut |n| bar.add(n)).map_err(|error| vec![error])?;
    bar.finish();
    if faults.is_empty() {
        let (head, bytes) = (slice.head(), slice.weight_bytes());
        let tensors = head.tensors().len();
        return Ok(format!("good, {tensors} tensors, {bytes} bytes"));
    }
    Err(faults.into_iter().map(|fault| fault.error(file)).collect())
}
