//! What the machines of a cluster can do, measured on live nodes within seconds.
//!
//! Machines are measured at the same time, unless they share a host and with it a memory. Links
//! are measured one after another, since all of them end at this machine.

mod link;
mod node;

use std::collections::BTreeMap;
use std::time::Duration;

use ds4_common::kernels::Kernels;
use ds4_common::measure::{self, MachineRates};
use ds4_common::threads::Threads;
use ds4_proto::limits::MAX_PROBE_BUDGET;
use ds4_proto::security::{DialError, Security};
use ds4_proto::wire::{Mismatch, WireError};
use futures::future::join_all;

pub use link::LinkRates;
use node::{Asked, Node};

/// Time that one node gets by default, of which it needs a few seconds.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What was found out about one node.
#[derive(Clone, Debug)]
pub struct NodeReport {
    /// As it was named.
    pub address: String,
    /// Median of small questions and answers.
    pub round_trip: Duration,
    /// Compute threads.
    pub threads: u32,
    /// Instruction set of its kernels.
    pub kernels: String,
    /// Machine and link; `None` for a node whose software cannot measure.
    pub measured: Option<(MachineRates, LinkRates)>,
}

/// Why a node was not measured.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    #[error("expert node {node}: {problem}")]
    Dial { node: String, problem: DialError },
    #[error("expert node {node} cannot be reached: {reason}")]
    Unreachable { node: String, reason: String },
    #[error("expert node {node} does not fit: {mismatch}")]
    Mismatch { node: String, mismatch: Mismatch },
    #[error("expert node {node} reports what cannot be: {problem}")]
    Malformed { node: String, problem: WireError },
    #[error("expert node {node} was not done measuring {what} within {} s", limit.as_secs_f64())]
    Late {
        node: String,
        what: &'static str,
        limit: Duration,
    },
    #[error("expert node {node} failed to measure {what}: {reason}")]
    Failed {
        node: String,
        what: &'static str,
        reason: String,
    },
}

impl CalibrateError {
    /// Address of the node.
    #[must_use]
    pub fn node(&self) -> &str {
        match self {
            CalibrateError::Dial { node, .. }
            | CalibrateError::Unreachable { node, .. }
            | CalibrateError::Mismatch { node, .. }
            | CalibrateError::Malformed { node, .. }
            | CalibrateError::Late { node, .. }
            | CalibrateError::Failed { node, .. } => node,
        }
    }
}

/// Measures the nodes at `addresses`; the results have their order. Each of the two parts, the
/// machine and the link, may take a node `patience`; who is late or broken does not keep the
/// others from being measured.
pub async fn nodes(
    addresses: &[String],
    security: &Security,
    patience: Duration,
) -> Vec<Result<NodeReport, CalibrateError>> {
    let mut hosts: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, address) in addresses.iter().enumerate() {
        hosts.entry(host(address)).or_default().push(index);
    }
    let machines = hosts.into_values().map(move |indices| async move {
        let mut found = Vec::with_capacity(indices.len());
        for index in indices {
            let node = Node::new(&addresses[index], patience);
            found.push((index, node.ask(security).await));
        }
        found
    });
    let mut machines: Vec<_> = join_all(machines).await.into_iter().flatten().collect();
    machines.sort_by_key(|(index, _)| *index);
    let mut reports = Vec::with_capacity(addresses.len());
    for (index, asked) in machines {
        let node = Node::new(&addresses[index], patience);
        reports.push(match asked {
            Ok(asked) => with_link(&node, asked).await,
            Err(error) => Err(error),
        });
    }
    reports
}

async fn with_link(node: &Node<'_>, asked: Asked) -> Result<NodeReport, CalibrateError> {
    let measured = match asked.rates {
        Some(rates) => Some((rates, node.link(&asked.channel, asked.round_trip).await?)),
        None => None,
    };
    Ok(NodeReport {
        address: node.address.to_owned(),
        round_trip: asked.round_trip,
        threads: asked.threads,
        kernels: asked.kernels,
        measured,
    })
}

/// Measures this machine, as nodes are measured.
///
/// # Errors
/// The threads could not be made.
pub async fn coordinator(threads: Threads, kernels: Kernels) -> std::io::Result<MachineRates> {
    let work = move || measure::this_machine(threads, kernels, MAX_PROBE_BUDGET);
    let found = tokio::task::spawn_blocking(work).await;
    found.map_err(std::io::Error::other)?
}

/// What nodes of one machine have in common.
fn host(address: &str) -> &str {
    let bare = address.strip_prefix("http://").unwrap_or(address);
    bare.rsplit_once(':').map_or(bare, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_one_machine_are_known_by_their_host() {
        assert_eq!(host("10.0.0.1:7001"), "10.0.0.1");
        assert_eq!(host("http://localhost:1"), "localhost");
        assert_eq!(host("[::1]:7"), "[::1]");
    }
}
