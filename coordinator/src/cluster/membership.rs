//! From a list of addresses to nodes that are known to fit.

use std::time::Duration;

use ds4_proto::channel::AddressError;
use ds4_proto::limits::{HANDSHAKE_TIMEOUT, MAX_DESCRIPTION_BYTES};
use ds4_proto::pb::DescribeRequest;
use ds4_proto::pb::node_control_client::NodeControlClient;
use ds4_proto::security::{DialError, PlainText, Security};
use ds4_proto::wire::{FingerprintBytes, Mismatch, NodeInfo, Shape, WireError, decode_node};
use tokio::time::Instant;
use tonic::transport::Endpoint;

use super::assignment::AssignmentError;
use super::transport::{reason, status_text};

/// Pause between attempts to reach a node.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Time between messages about a node that is still missing.
const MESSAGE_INTERVAL: Duration = Duration::from_secs(5);

/// The model that the nodes must serve.
#[derive(Clone, Debug)]
pub struct Expectation {
    pub fingerprint: FingerprintBytes,
    pub shape: Shape,
}

/// A node that fits.
#[derive(Clone, Debug)]
pub struct Member {
    /// The address as it was given.
    pub address: String,
    pub info: NodeInfo,
    pub(super) endpoint: Endpoint,
}

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("no expert nodes were named")]
    NoNodes,
    #[error("expert node {0} is named twice")]
    Duplicate(String),
    #[error("'{address}' is no node address: {reason}")]
    Address {
        address: String,
        reason: AddressError,
    },
    #[error(transparent)]
    PlainText(#[from] PlainText),
    #[error("expert node {node} was not reached within {seconds} s: {reason}")]
    Unreachable {
        node: String,
        seconds: u64,
        reason: String,
    },
    #[error("expert node {node} does not fit: {mismatch}")]
    Mismatch { node: String, mismatch: Mismatch },
    #[error(
        "expert node {node} does not fit: it has {}, the coordinator {}",
        shape_text(found),
        shape_text(expected)
    )]
    Shape {
        node: String,
        found: Shape,
        expected: Shape,
    },
    #[error("expert node {node} describes itself wrongly: {problem}")]
    Malformed { node: String, problem: WireError },
    #[error("layer {layer}: {problem}")]
    Assignment {
        layer: usize,
        problem: AssignmentError,
    },
    #[error("a row of this model is too large for the wire limits")]
    TooLarge,
}

impl From<DialError> for ClusterError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Address { address, reason } => ClusterError::Address { address, reason },
            DialError::PlainText(error) => ClusterError::PlainText(error),
        }
    }
}

fn shape_text(shape: &Shape) -> String {
    let Shape {
        layers,
        hidden,
        used,
        grid,
    } = shape;
    format!("{layers} layers, width {hidden}, {used} experts a token and {grid}")
}

/// Asks every node what it is and checks that it fits. Nodes that cannot be reached yet are asked
/// again until `patience` is over, with a message about each.
///
/// # Errors
/// Names the first node that cannot be reached, or does not fit, and why.
pub async fn gather(
    addresses: &[String],
    expected: &Expectation,
    patience: Duration,
    security: &Security,
) -> Result<Vec<Member>, ClusterError> {
    if addresses.is_empty() {
        return Err(ClusterError::NoNodes);
    }
    for (i, address) in addresses.iter().enumerate() {
        if addresses[..i].contains(address) {
            return Err(ClusterError::Duplicate(address.clone()));
        }
    }
    let asked = addresses
        .iter()
        .map(|address| ask(address, expected, patience, security));
    futures::future::try_join_all(asked).await
}

async fn ask(
    address: &str,
    expected: &Expectation,
    patience: Duration,
    security: &Security,
) -> Result<Member, ClusterError> {
    let node = || address.to_owned();
    let endpoint = security.endpoint(address)?;
    let start = Instant::now();
    let mut next_message = start;
    loop {
        let attempt = tokio::time::timeout_at(start + patience, describe(&endpoint)).await;
        let fault = match attempt {
            Ok(Ok(info)) => {
                let info = info.map_err(|problem| ClusterError::Malformed {
                    node: node(),
                    problem,
                })?;
                let info = info.map_err(|mismatch| ClusterError::Mismatch {
                    node: node(),
                    mismatch,
                })?;
                fits(address, &info, expected)?;
                return Ok(Member {
                    address: node(),
                    info,
                    endpoint,
                });
            }
            Ok(Err(fault)) => fault,
            Err(_) => "it does not answer".to_owned(),
        };
        let now = Instant::now();
        if now + RETRY_PAUSE >= start + patience {
            return Err(ClusterError::Unreachable {
                node: node(),
                seconds: patience.as_secs(),
                reason: fault,
            });
        }
        if now >= next_message {
            let left = (start + patience - now).as_secs();
            tracing::warn!(node = address, reason = %fault, "waiting for an expert node, {left} s left");
            next_message = now + MESSAGE_INTERVAL;
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// One attempt; the outer error is a node that cannot be reached.
async fn describe(
    endpoint: &Endpoint,
) -> Result<Result<Result<NodeInfo, Mismatch>, WireError>, String> {
    let channel = endpoint.connect().await.map_err(|e| reason(&e))?;
    let mut client =
        NodeControlClient::new(channel).max_decoding_message_size(MAX_DESCRIPTION_BYTES);
    let answer = tokio::time::timeout(HANDSHAKE_TIMEOUT, client.describe(DescribeRequest {})).await;
    let reply = answer
        .map_err(|_| "it does not answer".to_owned())?
        .map_err(|status| status_text(&status))?;
    Ok(decode_node(reply.get_ref()))
}

fn fits(address: &str, info: &NodeInfo, expected: &Expectation) -> Result<(), ClusterError> {
    let node = address.to_owned();
    if info.fingerprint != expected.fingerprint {
        let mismatch = Mismatch::Fingerprint {
            node: info.fingerprint,
            coordinator: expected.fingerprint,
        };
        return Err(ClusterError::Mismatch { node, mismatch });
    }
    if info.shape != expected.shape {
        return Err(ClusterError::Shape {
            node,
            found: info.shape,
            expected: expected.shape,
        });
    }
    Ok(())
}

/// What a node says about itself now, counters included.
///
/// # Errors
/// It cannot be reached, or its answer cannot be understood.
pub async fn inspect(member: &Member) -> Result<NodeInfo, String> {
    let answer = describe(&member.endpoint).await?;
    let info = answer.map_err(|error| error.to_string())?;
    info.map_err(|mismatch| mismatch.to_string())
}
