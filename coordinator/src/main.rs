//! `ds4-coord`: the coordinator's process.

use std::process::ExitCode;

fn main() -> ExitCode {
    ds4_coordinator::commands::cli::main()
}
