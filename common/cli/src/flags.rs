//! Flags about the model and the machine, which several commands of both programs have.

use std::path::PathBuf;

use clap::Args;
use ds4_common::kernels::Kernels;
use ds4_common::threads::Threads;

use crate::parse;

/// The flag that names the files of one model.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Model")]
pub struct ModelFlag {
    /// GGUF file, any part of a split model, or all of its layer shards, comma-separated
    #[arg(
        short,
        long,
        env = "DS4_MODEL",
        value_name = "FILE",
        num_args = 1..,
        value_delimiter = ','
    )]
    pub model: Vec<PathBuf>,
}

/// The flags that say how many threads compute, and where they run.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Engine")]
pub struct ThreadArgs {
    /// Compute threads; 0 takes one per core
    #[arg(
        long,
        env = "DS4_THREADS",
        default_value_t = 0,
        value_name = "N",
        value_parser = parse::up_to(1024)
    )]
    pub threads: usize,

    /// Pin each compute thread to a core of its own [default: off]
    #[arg(long, env = "DS4_PIN")]
    pub pin: bool,
}

impl ThreadArgs {
    /// The number of threads: the given one, or one per core.
    #[must_use]
    pub fn count(self) -> usize {
        Threads::new(self.threads, false).count()
    }

    /// The threads that the flags describe.
    #[must_use]
    pub fn resolve(self) -> Threads {
        Threads::new(self.threads, self.pin)
    }
}

/// The flag that chooses the kernels.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Engine")]
pub struct IsaArg {
    /// Instruction set of the kernels: auto, or one that --version lists
    #[arg(
        long,
        env = "DS4_ISA",
        default_value = "auto",
        value_name = "NAME",
        value_parser = parse::kernels
    )]
    pub isa: Kernels,
}
