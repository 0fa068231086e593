//! `ds4-coord`: the coordinator's commands.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ds4_coordinator::commands::{bench, inspect, logits, synth};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the logits of every position of a list of tokens
    Logits(logits::LogitsArgs),
    /// Measure prefill, decode, stages and memory
    Bench(bench::BenchArgs),
    /// Describe a model
    Inspect(inspect::InspectArgs),
    /// Write a model of random weights
    Synth(synth::SynthArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Logits(args) => logits::run(args).await,
        Command::Bench(args) => bench::run(args).await,
        Command::Inspect(args) => inspect::run(&args),
        Command::Synth(args) => synth::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ds4-coord: {error:#}");
            ExitCode::FAILURE
        }
    }
}
