//! The flags with which every command says what model to run, and on what.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use clap::{Arg, Args, ValueEnum};
use ds4_cli::{IsaArg, ModelFlag, ThreadArgs, TlsArgs, parse};
use ds4_common::tiles::GridCut;
use ds4_proto::channel;
use ds4_proto::security::Security;
use ds4_proto::tls::Role;

use super::reference_model;
use crate::cluster::NodeSpec;
use crate::engine::Numerics;

/// Which model; the reference model by default.
#[derive(Args, Clone, Debug, Default)]
#[command(mut_arg("model", model_help))]
pub struct ModelFiles {
    /// The files that were named.
    #[command(flatten)]
    pub named: ModelFlag,
}

fn model_help(flag: Arg) -> Arg {
    flag.help(
        "GGUF file, any part of a split model, or all of its layer shards, comma-separated \
         [default: the small reference model in the source tree]",
    )
}

impl ModelFiles {
    /// The files that were named, or the reference model's.
    ///
    /// # Errors
    /// No model was named and the reference model does not exist.
    pub fn paths(&self) -> Result<Vec<PathBuf>> {
        match &self.named.model[..] {
            [] => Ok(vec![reference_model::path()?]),
            named => Ok(named.to_vec()),
        }
    }
}

impl From<Vec<PathBuf>> for ModelFiles {
    fn from(model: Vec<PathBuf>) -> Self {
        let named = ModelFlag { model };
        ModelFiles { named }
    }
}

/// Model, experts and threads.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// Which model.
    #[command(flatten)]
    pub files: ModelFiles,

    /// Which expert nodes.
    #[command(flatten)]
    pub cluster: ClusterArgs,

    /// How connections to nodes are protected.
    #[command(flatten)]
    pub tls: TlsArgs,

    /// How the coordinator computes.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Which nodes compute the routed experts, and what happens when they do not.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// Expert nodes that compute the routed experts, comma-separated; dns:HOST:PORT stands for
    /// every address of a name, which is looked up again every few seconds [default: none]
    #[arg(
        long,
        env = "DS4_NODES",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        value_parser = node_address
    )]
    pub nodes: Vec<String>,

    /// Expert nodes to run inside this process, reached over gRPC on loopback; 0 without --nodes
    /// computes experts directly [default: 1 without --nodes, else 0]
    #[arg(
        long,
        env = "DS4_EMBEDDED",
        value_name = "N",
        value_parser = parse::up_to(256)
    )]
    pub embedded: Option<usize>,

    /// How to cut the expert tiles: expert groups x block strips [default: by number of nodes]
    #[arg(long, env = "DS4_GRID", value_name = "ExB")]
    pub grid: Option<GridCut>,

    /// Whether the coordinator computes experts that no node can from its own model file: auto
    /// (once nodes have held all tiles), always (from the start) or never
    #[arg(
        long,
        env = "DS4_LOCAL_FALLBACK",
        default_value = "auto",
        value_name = "WHEN",
        hide_possible_values = true
    )]
    pub local_fallback: LocalFallback,

    /// Seconds to wait at the start until the nodes hold all tiles together
    #[arg(
        long,
        env = "DS4_WAIT_FOR_NODES",
        default_value_t = 60,
        value_name = "SECONDS",
        value_parser = parse::seconds(1..=86_400)
    )]
    pub wait_for_nodes: u64,

    /// Seconds for the experts of one layer, including lost connections and retries; whatever is
    /// still missing then is computed from the coordinator's model file, or fails with --local-fallback never
    #[arg(
        long,
        env = "DS4_CALL_TIMEOUT",
        default_value_t = 60,
        value_name = "SECONDS",
        value_parser = parse::seconds(1..=86_400)
    )]
    pub call_timeout: u64,

    /// One call to a node in N is computed a second time, on another node or from the coordinator's
    /// model file, and compared bit for bit; or off
    #[arg(long, env = "DS4_AUDIT", default_value = "10000", value_name = "N")]
    pub audit: Audit,

    /// Whether nodes whose numbers are wrong are refused at the start; a diagnosis needs them.
    #[arg(skip = true)]
    pub known_calls: bool,
}

/// The value of `--audit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// No call.
    Off,
    /// One call in so many.
    OneIn(NonZeroU32),
}

impl Audit {
    /// One call in so many, if any.
    #[must_use]
    pub fn one_in(self) -> Option<NonZeroU32> {
        match self {
            Audit::Off => None,
            Audit::OneIn(calls) => Some(calls),
        }
    }
}

impl FromStr for Audit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Audit::Off),
            _ => text
                .parse()
                .map(Audit::OneIn)
                .map_err(|_| format!("expected off or a number from 1 to {}", u32::MAX)),
        }
    }
}

/// How the coordinator, and the nodes inside of its process, compute.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// How many threads, shared with embedded nodes.
    #[command(flatten)]
    pub threads: ThreadArgs,

    /// Which kernels.
    #[command(flatten)]
    pub isa: IsaArg,

    /// What is rounded: full (activations and caches, as trained), cache, or f32 (nothing)
    #[arg(
        long,
        env = "DS4_NUMERICS",
        default_value_t = Numerics::Full,
        value_name = "NAME"
    )]
    pub numerics: Numerics,

    /// Longest sequence; 0 takes the model's own limit
    #[arg(long, env = "DS4_CONTEXT", default_value_t = 0, value_name = "TOKENS")]
    pub context: usize,
}

/// When the coordinator computes experts from its own model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LocalFallback {
    /// Once nodes have held all tiles together.
    Auto,
    /// From the start.
    Always,
    /// Not at all.
    Never,
}

impl ModelArgs {
    /// How connections to nodes are protected. Checks every named node, so that a wrong one is
    /// found before the model is opened.
    ///
    /// # Errors
    /// A certificate or key cannot be used, or plain text would go to a node on another machine.
    pub fn security(&self) -> Result<Security> {
        let security = self.tls.security(Role::Coordinator)?;
        for node in &self.cluster.nodes {
            let node: NodeSpec = node.parse()?;
            security.endpoint(node.address())?;
        }
        Ok(security)
    }

    /// Nodes to run inside this process.
    #[must_use]
    pub fn embedded_nodes(&self) -> usize {
        let default = usize::from(self.cluster.nodes.is_empty());
        self.cluster.embedded.unwrap_or(default)
    }
}

/// Checked by the parser, so that a typing error costs neither a load nor a wait.
fn node_address(text: &str) -> Result<String, channel::AddressError> {
    text.parse().map(|_: NodeSpec| text.to_owned())
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
            assert!(
                error
                    .to_string()
                    .starts_with("node:1 is not on this machine"),
                "{error}"
            );
            assert!(security(&["--nodes", away, "--insecure"]).is_ok(), "{away}");
        }
    }
}
