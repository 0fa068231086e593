//! Measures live nodes and this machine within seconds: memory, compute, links.
//!
//! Machines are measured at the same time, except nodes on the same host, which share its memory.
//! Links are measured one after another, since all of them end at this machine.

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
use node::{MachineReport, Node};

/// Default timeout for each part of a node's measurement, which takes a few seconds.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The measurements of one node.
#[derive(Clone, Debug)]
pub struct NodeReport {
    /// Its address, as given by the caller.
    pub address: String,
    /// Median time of a small request and its reply.
    pub round_trip: Duration,
    /// Number of compute threads.
    pub threads: u32,
    /// Instruction set of its kernels.
    pub kernels: String,
    /// Rates of the machine and of the link; `None` if the node's software cannot measure.
    pub measured: Option<(MachineRates, LinkRates)>,
}

/// Why a node was not measured.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// Its address is invalid, or may not be connected in plain text.
    #[error("expert node {node}: {problem}")]
    Dial {
        /// Its address.
        node: String,
        /// What is wrong with it.
        problem: DialError,
    },
    /// No connection could be made.
    #[error("expert node {node} cannot be reached: {reason}")]
    Unreachable {
        /// Its address.
        node: String,
        /// The transport's error.
        reason: String,
    },
    /// It speaks another version of the protocol.
    #[error("expert node {node} does not fit this coordinator: {mismatch}")]
    Mismatch {
        /// Its address.
        node: String,
        /// The difference.
        mismatch: Mismatch,
    },
    /// Its report is out of bounds.
    #[error("expert node {node} sent a malformed report: {problem}")]
    Malformed {
        /// Its address.
        node: String,
        /// What is wrong with it.
        problem: WireError,
    },
    /// The timeout has passed.
    #[error("expert node {node} did not finish measuring {what} within {} s", limit.as_secs_f64())]
    Late {
        /// Its address.
        node: String,
        /// What was being measured.
        what: &'static str,
        /// The timeout.
        limit: Duration,
    },
    /// The node answered with an error.
    #[error("expert node {node} failed to measure {what}: {reason}")]
    Failed {
        /// Its address.
        node: String,
        /// What was being measured.
        what: &'static str,
        /// The node's error.
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

/// Measures the nodes at `addresses`; the results are in the same order. Each of the two parts,
/// machine and link, may take up to `timeout` per node. A node that is late or broken does not keep
/// the others from being measured.
pub async fn nodes(
    addresses: &[String],
    security: &Security,
    timeout: Duration,
) -> Vec<Result<NodeReport, CalibrateError>> {
    let mut hosts: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, address) in addresses.iter().enumerate() {
        hosts.entry(host(address)).or_default().push(index);
    }
    let machines = hosts.into_values().map(move |indices| async move {
        let mut found = Vec::with_capacity(indices.len());
        for index in indices {
            let node = Node::new(&addresses[index], timeout);
            found.push((index, node.measure_machine(security).await));
        }
        found
    });
    let mut machines: Vec<_> = join_all(machines).await.into_iter().flatten().collect();
    machines.sort_by_key(|(index, _)| *index);
    let mut reports = Vec::with_capacity(addresses.len());
    for (index, machine) in machines {
        let node = Node::new(&addresses[index], timeout);
        reports.push(match machine {
            Ok(machine) => with_link(&node, machine).await,
            Err(error) => Err(error),
        });
    }
    reports
}

async fn with_link(node: &Node<'_>, machine: MachineReport) -> Result<NodeReport, CalibrateError> {
    let measured = match machine.rates {
        Some(rates) => Some((
            rates,
            node.measure_link(&machine.channel, machine.round_trip)
                .await?,
        )),
        None => None,
    };
    Ok(NodeReport {
        address: node.address.to_owned(),
        round_trip: machine.round_trip,
        threads: machine.threads,
        kernels: machine.kernels,
        measured,
    })
}

/// Measures this machine in the same way as nodes.
///
/// # Errors
/// The threads cannot be started.
pub async fn coordinator(threads: Threads, kernels: Kernels) -> std::io::Result<MachineRates> {
    let work = move || measure::this_machine(threads, kernels, MAX_PROBE_BUDGET);
    let found = tokio::task::spawn_blocking(work).await;
    found.map_err(std::io::Error::other)?
}

/// The host of an address, by which nodes on the same machine are recognised.
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
