//! `ds4-coord`, built where the tests find it.

use std::process::ExitCode;

fn main() -> ExitCode {
    ds4_coordinator::commands::cli::main()
}
