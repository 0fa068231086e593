//! The command line of `ds4-coord`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::LazyLock;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use ds4_common::kernels::Kernels;
use tracing_subscriber::EnvFilter;

use super::{bench, certs, chat, inspect, logits, serve, share, slice, synth, verify};

/// What `--version` prints: also the kernels, of which the CPU decides.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{}\nkernels {}",
        env!("CARGO_PKG_VERSION"),
        Kernels::summary()
    )
});

/// Coordinator of a ds4 cluster: DeepSeek V4 over distributed experts.
#[derive(Debug, Parser)]
#[command(name = "ds4-coord", version, long_version = VERSION.as_str(), about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Log filter, for example `info` or `ds4_coordinator=debug` [default: info; chat: warn]
    #[arg(long, env = "DS4_LOG", global = true, value_name = "FILTER", value_parser = log_filter)]
    log: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the OpenAI-style API and a chat page
    Serve(serve::ServeArgs),
    /// Talk to the model in the terminal
    Chat(chat::ChatArgs),
    /// Write the logits of every position of a list of tokens
    Logits(logits::LogitsArgs),
    /// Measure prefill, decode, stages and memory
    Bench(bench::BenchArgs),
    /// Make the certificates with which coordinator and nodes know each other
    Certs(certs::CertsArgs),
    /// Cut a model into one file a node
    Slice(slice::SliceArgs),
    /// Give nodes their slices over the network
    Share(share::ShareArgs),
    /// Check slices against their hashes
    Verify(verify::VerifyArgs),
    /// Describe a model or a slice
    Inspect(inspect::InspectArgs),
    /// Write a model of random weights, to measure with
    Synth(synth::SynthArgs),
}

/// The whole process: flags, log, command, exit code.
#[must_use]
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ds4-coord: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    // A conversation is not to be interrupted by what goes well.
    let usual = match cli.command {
        Command::Chat(_) => "warn",
        _ => "info",
    };
    let filter = cli.log.as_deref().unwrap_or(usual);
    let filter = EnvFilter::try_new(filter).context("--log")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Runtime::new().context("no async runtime")?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::run(args).await,
            Command::Chat(args) => chat::run(args).await,
            Command::Logits(args) => logits::run(args).await,
            Command::Bench(args) => bench::run(args).await,
            Command::Certs(args) => certs::run(&args),
            Command::Slice(args) => slice::run(&args),
            Command::Share(args) => share::run(args).await,
            Command::Verify(args) => verify::run(&args),
            Command::Inspect(args) => inspect::run(&args),
            Command::Synth(args) => synth::run(&args),
        }
    });
    // A model may still be loading on a blocking thread; the process does not wait for it.
    runtime.shutdown_background();
    result
}

fn log_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_of_the_server_are_environment_variables_with_defaults() {
        let mut cli = Cli::command();
        cli.build();
        cli.clone().debug_assert();
        let serve = cli.find_subcommand("serve").expect("a command");
        for arg in serve.get_arguments().filter(|arg| arg.get_id() != "help") {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(arg.get_env().is_some(), "{arg}: no variable");
            let default = !arg.get_default_values().is_empty() || help.contains("[default: ");
            assert!(default, "{arg}: no default");
        }
    }
}
