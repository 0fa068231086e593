//! `ds4-expert`: the expert node's process.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use ds4_expert_node::cli::{Cli, Command};
use ds4_expert_node::lifecycle;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ds4-expert: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let filter = EnvFilter::try_new(&cli.log).context("--log")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match &cli.command {
        Command::Inspect(args) => lifecycle::inspect(args),
        Command::Serve(args) => {
            let runtime = tokio::runtime::Runtime::new().context("no async runtime")?;
            let result = runtime.block_on(lifecycle::serve(args));
            // Loading may still run on a blocking thread; the process does not wait for it.
            runtime.shutdown_background();
            result
        }
    }
}
