//! `ds4-coord` as the tests of this crate can start it: Cargo gives a test the path of binaries of
//! its own package only.

use std::process::ExitCode;

fn main() -> ExitCode {
    ds4_coordinator::commands::cli::main()
}
