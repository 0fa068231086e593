//! The flags with which every command says what model to run, and on what.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use ds4_common::kernels::Kernels;
use ds4_expert_node::tiles::GridCut;

use super::reference_model;
use crate::engine::Numerics;

/// Which model.
#[derive(Args, Clone, Debug)]
pub struct ModelFiles {
    /// GGUF file, one of its split files, or all of its layer shards [default: the small
    /// reference model in the source tree]
    #[arg(
        short,
        long,
        env = "DS4_MODEL",
        value_name = "FILE",
        value_delimiter = ','
    )]
    pub model: Vec<PathBuf>,
}

impl ModelFiles {
    /// # Errors
    /// No model was named and the reference model is gone.
    pub fn paths(&self) -> Result<Vec<PathBuf>> {
        if self.model.is_empty() {
            Ok(vec![reference_model::path()?])
        } else {
            Ok(self.model.clone())
        }
    }
}

/// Model, experts and threads.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    #[command(flatten)]
    pub files: ModelFiles,

    /// Expert nodes that compute the routed experts
    #[arg(
        long,
        env = "DS4_NODES",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub nodes: Vec<String>,

    /// Expert nodes to run inside this process, reached over gRPC on loopback; 0 without --nodes
    /// computes experts directly [default: 1 without --nodes, else 0]
    #[arg(long, env = "DS4_EMBEDDED", value_name = "N")]
    pub embedded: Option<usize>,

    /// How the expert tiles are cut, expert groups x block strips [default: by number of nodes]
    #[arg(long, env = "DS4_GRID", value_name = "ExB")]
    pub grid: Option<GridCut>,

    /// Compute threads of the coordinator, and of its embedded nodes together; 0 is one a core
    #[arg(long, env = "DS4_THREADS", default_value_t = 0)]
    pub threads: usize,

    /// Instruction set of the kernels: auto, or one that --version lists
    #[arg(long, env = "DS4_ISA", default_value = "auto")]
    pub isa: String,

    /// What is rounded: full (activations and caches, as trained), cache, or f32 (nothing)
    #[arg(long, env = "DS4_NUMERICS", default_value_t = Numerics::Full)]
    pub numerics: Numerics,

    /// Longest sequence in tokens; 0 is the model's own limit
    #[arg(long, env = "DS4_CONTEXT", default_value_t = 0, value_name = "TOKENS")]
    pub context: usize,

    /// Time for all expert nodes to be there at the start
    #[arg(
        long,
        env = "DS4_WAIT_FOR_NODES",
        default_value_t = 60, value_parser = seconds(),
        value_name = "SECONDS"
    )]
    pub wait_for_nodes: u64,

    /// Time for one layer's experts, lost connections and retries included
    #[arg(
        long,
        env = "DS4_CALL_TIMEOUT",
        default_value_t = 60, value_parser = seconds(),
        value_name = "SECONDS"
    )]
    pub call_timeout: u64,
}

impl ModelArgs {
    /// # Errors
    /// The instruction set is unknown or this CPU lacks it.
    pub fn kernels(&self) -> Result<Kernels> {
        Kernels::named(&self.isa).context("--isa")
    }

    /// Nodes to run inside this process.
    #[must_use]
    pub fn embedded_nodes(&self) -> usize {
        self.embedded.unwrap_or(usize::from(self.nodes.is_empty()))
    }
}

/// 1 second to a day.
fn seconds() -> impl clap::builder::TypedValueParser<Value = u64> {
    clap::value_parser!(u64).range(1..=86_400)
}
