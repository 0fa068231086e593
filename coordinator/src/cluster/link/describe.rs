//! Asks a node to describe itself, and checks that it fits the cluster.

use std::time::Duration;

use ds4_proto::error_text::status_text;
use ds4_proto::limits::{HANDSHAKE_TIMEOUT, MAX_DESCRIPTION_BYTES};
use ds4_proto::pb::node_control_client::NodeControlClient;
use ds4_proto::wire::{Mismatch, NodeInfo, Versions, WireError, decode_node};
use tonic::transport::Channel;

use super::LinkFault;
use crate::cluster::membership::{ClusterError, Expectation};

/// The node's description, if the node serves the expected model.
pub(super) async fn describe(
    name: &str,
    channel: Channel,
    expected: &Expectation,
) -> Result<NodeInfo, LinkFault> {
    let node = || name.to_owned();
    let first = ask(channel.clone()).await;
    // A flipped bit of the version should not pass for another version.
    let asked = match first {
        Err(DescribeError::Mismatch(_)) => ask(channel).await,
        other => other,
    };
    let info = asked.map_err(|error| match error {
        DescribeError::Silent => LinkFault::Lost(no_answer(HANDSHAKE_TIMEOUT)),
        DescribeError::Failed(status) => LinkFault::lost(status_text(&status), &*status),
        // Damaged on its way: another try may do.
        DescribeError::Malformed(problem @ WireError::Checksum(_)) => {
            LinkFault::Lost(problem.to_string())
        }
        DescribeError::Malformed(problem) => LinkFault::mismatch(ClusterError::Malformed {
            node: node(),
            problem,
        }),
        DescribeError::Mismatch(mismatch) => LinkFault::mismatch(ClusterError::Mismatch {
            node: node(),
            mismatch,
        }),
    })?;
    if info.fingerprint != expected.fingerprint {
        let mismatch = Mismatch::Fingerprint {
            node: info.fingerprint,
            coordinator: expected.fingerprint,
        };
        let node = node();
        return Err(LinkFault::mismatch(ClusterError::Mismatch {
            node,
            mismatch,
        }));
    }
    if info.shape != expected.shape {
        return Err(LinkFault::mismatch(ClusterError::Shape {
            node: node(),
            found: info.shape,
            expected: expected.shape,
        }));
    }
    Ok(info)
}

enum DescribeError {
    /// No answer in time.
    Silent,
    Failed(Box<tonic::Status>),
    Malformed(WireError),
    Mismatch(Mismatch),
}

async fn ask(channel: Channel) -> Result<NodeInfo, DescribeError> {
    let mut client =
        NodeControlClient::new(channel).max_decoding_message_size(MAX_DESCRIPTION_BYTES);
    let answer = client.describe(Versions::request());
    let reply = tokio::time::timeout(HANDSHAKE_TIMEOUT, answer)
        .await
        .map_err(|_| DescribeError::Silent)?
        .map_err(|status| DescribeError::Failed(Box::new(status)))?;
    decode_node(reply.get_ref())
        .map_err(DescribeError::Malformed)?
        .map_err(DescribeError::Mismatch)
}

fn no_answer(timeout: Duration) -> String {
    format!("it did not answer within {} s", timeout.as_secs_f64())
}
