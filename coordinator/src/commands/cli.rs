//! The command line of `ds4-coord`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use ds4_cli::{LogArg, block_on, exit_code, long_version};

use super::verify;
use super::{
    bench, calibrate, certs, chat, inspect, logits, plan, serve, share, slice, synth, trace,
};

/// Coordinator of a ds4 cluster: DeepSeek V4 with its experts spread over many machines
#[derive(Debug, Parser)]
#[command(
    name = "ds4-coord",
    version,
    long_version = long_version(),
    about,
    after_help = EXAMPLES,
    mut_arg("log", log_help)
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    log: LogArg,
}

const EXAMPLES: &str = "\
Examples:
  ds4-coord serve                          # the small reference model, on this machine
  ds4-coord plan --flash --node name=a,memory=64G --node name=b,memory=128G --out plan.toml
  ds4-coord serve -m V4-Flash-Q4.gguf --nodes 10.0.0.11:50051,10.0.0.12:50051 ...";

/// A conversation is not to be interrupted by reports of success.
fn log_help(flag: clap::Arg) -> clap::Arg {
    flag.help(
        "Log filter, for example `warn` or `info,ds4_proto=debug`; @FILE reads it from a file, and \
         again on SIGHUP [default: info; chat: warn]",
    )
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the OpenAI-style API and a chat page
    Serve(Box<serve::ServeArgs>),
    /// Chat with the model in the terminal
    Chat(chat::ChatArgs),
    /// Write the logits at every position of a list of tokens
    Logits(logits::LogitsArgs),
    /// Print what is computed for one token, layer by layer, or compare one expert's bits everywhere
    Trace(trace::TraceArgs),
    /// Measure the speed of prefill and decode, the time of every stage, and memory in use
    Bench(bench::BenchArgs),
    /// Measure the machines and links of running nodes
    Calibrate(calibrate::CalibrateArgs),
    /// Create the certificates with which coordinator and nodes authenticate each other
    Certs(certs::CertsArgs),
    /// Plan which machine holds which experts, and predict the speed
    Plan(plan::PlanArgs),
    /// Cut a model into one file per node
    Slice(slice::SliceArgs),
    /// Send nodes their slices over the network
    Share(share::ShareArgs),
    /// Check slices against their hashes
    Verify(verify::VerifyArgs),
    /// Describe a model or a slice
    Inspect(inspect::InspectArgs),
    /// Write a model of random weights for measurements
    Synth(synth::SynthArgs),
}

/// The whole process: flags, log, command, exit code.
#[must_use]
pub fn main() -> ExitCode {
    exit_code("ds4-coord", run(Cli::parse()))
}

fn run(cli: Cli) -> Result<()> {
    let default = match cli.command {
        Command::Chat(_) => "warn",
        _ => "info",
    };
    let log = cli.log.start(default)?;
    block_on(async {
        match cli.command {
            Command::Serve(args) => serve::run(*args, log).await,
            Command::Chat(args) => chat::run(args).await,
            Command::Logits(args) => logits::run(args).await,
            Command::Trace(args) => trace::run(args).await,
            Command::Bench(args) => bench::run(args).await,
            Command::Calibrate(args) => calibrate::run(&args).await,
            Command::Certs(args) => certs::run(&args),
            Command::Plan(args) => plan::run(&args).await,
            Command::Slice(args) => slice::run(&args),
            Command::Share(args) => share::run(args, log).await,
            Command::Verify(args) => verify::run(&args),
            Command::Inspect(args) => inspect::run(&args),
            Command::Synth(args) => synth::run(&args),
        }
    })
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
