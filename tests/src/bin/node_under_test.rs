//! `ds4-expert`, built where the tests find it.

use std::process::ExitCode;

fn main() -> ExitCode {
    ds4_expert_node::cli::main()
}
