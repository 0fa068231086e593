//! The flags with which every command says what model to run, and on what.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::{Context, Result};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use ds4_common::kernels::Kernels;
use ds4_expert_node::tiles::GridCut;
use ds4_expert_node::tls_args::TlsArgs;
use ds4_proto::channel;
use ds4_proto::security::Security;
use ds4_proto::tls::Role;

use super::reference_model;
use crate::cluster::NodeSpec;
use crate::engine::Numerics;

/// Which model.
#[derive(Args, Clone, Debug)]
pub struct ModelFiles {
    /// GGUF file, one of its split files, or all of its layer shards, comma-separated [default:
    /// the small reference model in the source tree]
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

    /// Expert nodes that compute the routed experts, comma-separated; dns:HOST:PORT stands for
    /// every address of a name, which is asked for again every few seconds [default: none]
    #[arg(
        long,
        env = "DS4_NODES",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        value_parser = node_address
    )]
    pub nodes: Vec<String>,

    #[command(flatten)]
    pub tls: TlsArgs,

    /// Expert nodes to run inside this process, reached over gRPC on loopback; 0 without --nodes
    /// computes experts directly [default: 1 without --nodes, else 0]
    #[arg(long, env = "DS4_EMBEDDED", value_name = "N", value_parser = up_to(256))]
    pub embedded: Option<usize>,

    /// How the expert tiles are cut, expert groups x block strips [default: by number of nodes]
    #[arg(long, env = "DS4_GRID", value_name = "ExB")]
    pub grid: Option<GridCut>,

    /// Compute threads of the coordinator, and of its embedded nodes together; 0 is one a core
    #[arg(long, env = "DS4_THREADS", default_value_t = 0, value_name = "N", value_parser = up_to(1024))]
    pub threads: usize,

    /// Keep each compute thread on a core of its own
    #[arg(long, env = "DS4_PIN")]
    pub pin: bool,

    /// Instruction set of the kernels: auto, or one that --version lists
    #[arg(long, env = "DS4_ISA", default_value = "auto", value_name = "NAME")]
    pub isa: String,

    /// What is rounded: full (activations and caches, as trained), cache, or f32 (nothing)
    #[arg(long, env = "DS4_NUMERICS", default_value_t = Numerics::Full, value_name = "NAME")]
    pub numerics: Numerics,

    /// Longest sequence in tokens; 0 is the model's own limit
    #[arg(long, env = "DS4_CONTEXT", default_value_t = 0, value_name = "TOKENS")]
    pub context: usize,

    /// Whether the coordinator computes experts that no node can from its own model file: auto
    /// (once it has begun with nodes for all of them), always (it begins without them too), or
    /// never
    #[arg(
        long,
        env = "DS4_LOCAL_FALLBACK",
        default_value = "auto",
        value_name = "WHEN"
    )]
    pub local_fallback: LocalFallback,

    /// Time at the start for the expert nodes to hold all tiles together
    #[arg(
        long,
        env = "DS4_WAIT_FOR_NODES",
        default_value_t = 60, value_parser = seconds(),
        value_name = "SECONDS"
    )]
    pub wait_for_nodes: u64,

    /// Time for one layer's experts, lost connections and retries included; what is missing then is
    /// computed from the own model file, or is an error without --local-fallback
    #[arg(
        long,
        env = "DS4_CALL_TIMEOUT",
        default_value_t = 60, value_parser = seconds(),
        value_name = "SECONDS"
    )]
    pub call_timeout: u64,
}

/// When experts are computed from the coordinator's own file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LocalFallback {
    Auto,
    Always,
    Never,
}

impl ModelArgs {
    /// # Errors
    /// The instruction set is unknown or this CPU lacks it.
    pub fn kernels(&self) -> Result<Kernels> {
        Kernels::named(&self.isa).context("--isa")
    }

    /// What protects the connections to nodes; a node that it forbids to reach is known here,
    /// before the model is looked at.
    ///
    /// # Errors
    /// Names the file that cannot be used, or the node that plain text would go to.
    pub fn security(&self) -> Result<Security> {
        let security = self.tls.security(Role::Coordinator)?;
        for node in &self.nodes {
            let node: NodeSpec = node.parse()?;
            security.endpoint(node.address())?;
        }
        Ok(security)
    }

    /// Nodes to run inside this process.
    #[must_use]
    pub fn embedded_nodes(&self) -> usize {
        self.embedded.unwrap_or(usize::from(self.nodes.is_empty()))
    }
}

/// Here, so that a slip of the pen costs no load of a model and no wait for a node.
fn node_address(text: &str) -> Result<String, channel::AddressError> {
    text.parse().map(|_: NodeSpec| text.to_owned())
}

/// 1 to `most`.
pub(super) fn count(most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    number(1..=most)
}

/// 0 to `most`.
pub(super) fn up_to(most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    number(0..=most)
}

fn number(range: RangeInclusive<usize>) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(n) if range.contains(&n) => Ok(n),
        _ => {
            let (least, most) = (range.start(), range.end());
            Err(format!("expected a number from {least} to {most}"))
        }
    }
}

/// Bytes, with or without a unit.
pub(super) fn size(text: &str) -> Result<ByteSize, String> {
    let size = text.parse();
    size.map_err(|_| "expected a size such as 16GiB, 800MB or 1048576".to_owned())
}

/// 1 second to a day.
pub(super) fn seconds() -> impl clap::builder::TypedValueParser<Value = u64> {
    clap::value_parser!(u64).range(1..=86_400)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        model: ModelArgs,
    }

    #[test]
    fn nodes_behind_a_name_are_protected_as_named_ones_are() {
        let security = |args: &[&str]| {
            let program = Program::try_parse_from([&["program"], args].concat());
            program.expect("valid").model.security()
        };
        for here in ["localhost:1", "dns:localhost:1"] {
            assert!(security(&["--nodes", here]).is_ok(), "{here}");
        }
        for away in ["node:1", "dns:node:1"] {
            let error = security(&["--nodes", away]).expect_err(away);
            assert!(error.to_string().starts_with("node:1 is beyond"), "{error}");
            assert!(security(&["--nodes", away, "--insecure"]).is_ok(), "{away}");
        }
    }
}
