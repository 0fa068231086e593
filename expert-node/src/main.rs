//! `ds4-expert`: the expert node's process.

use std::process::ExitCode;

fn main() -> ExitCode {
    ds4_expert_node::cli::main()
}
