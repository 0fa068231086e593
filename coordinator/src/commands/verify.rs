//! `ds4-coord verify`: whether slices are what was written.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use ds4_common::model::Fingerprint;
use ds4_common::slice::{Slice, SliceError, verify};

use super::assembly::OpenModel;
use super::model_args::ModelFiles;
use super::progress::CopyBar;

/// What to check.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Slices to read through
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Model that they must be slices of
    #[arg(
        short,
        long,
        env = "DS4_MODEL",
        value_name = "FILE",
        value_delimiter = ','
    )]
    pub model: Vec<PathBuf>,
}

/// Names everything that is wrong, file by file.
///
/// # Errors
/// A file is wrong, or cannot be read.
pub fn run(args: &VerifyArgs) -> Result<()> {
    let files = ModelFiles {
        model: args.model.clone(),
    };
    let expected = match args.model.is_empty() {
        true => None,
        false => Some(OpenModel::open(&files)?.whole()?.fingerprint()),
    };
    let mut wrong = 0;
    for file in &args.files {
        match check(file, expected) {
            Ok(summary) => println!("{}: {summary}", file.display()),
            Err(errors) => {
                wrong += 1;
                for error in errors {
                    println!("{error}");
                }
            }
        }
    }
    match wrong {
        0 => Ok(()),
        _ => bail!("{wrong} of {} files are wrong", args.files.len()),
    }
}

/// A line about a sound slice, or all that is wrong with it.
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
        return Ok(format!("good, {tensors} tensors of {bytes} bytes"));
    }
    Err(faults.into_iter().map(|fault| fault.error(file)).collect())
}
