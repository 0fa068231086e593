//! What a node says about itself, and whether it fits.

use std::time::Duration;

use ds4_proto::channel;
use ds4_proto::limits::{HANDSHAKE_TIMEOUT, MAX_DESCRIPTION_BYTES};
use ds4_proto::pb::node_control_client::NodeControlClient;
use ds4_proto::wire::{Mismatch, NodeInfo, Versions, decode_node};
use tonic::transport::Channel;

use super::{Fault, reason, status_text};
use crate::cluster::membership::{ClusterError, Expectation};

/// One question and its answer.
pub(super) async fn describe(
    name: &str,
    channel: Channel,
    expected: &Expectation,
) -> Result<NodeInfo, Fault> {
    let node = || name.to_owned();
    let info = ask(channel).await.map_err(|problem| match problem {
        Problem::Unreachable(text) => Fault::Lost(text),
        Problem::Malformed(problem) => Fault::misfit(ClusterError::Malformed {
            node: node(),
            problem,
        }),
        Problem::Mismatch(mismatch) => Fault::misfit(ClusterError::Mismatch {
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
        return Err(Fault::misfit(ClusterError::Mismatch { node, mismatch }));
    }
    if info.shape != expected.shape {
        return Err(Fault::misfit(ClusterError::Shape {
            node: node(),
            found: info.shape,
            expected: expected.shape,
        }));
    }
    Ok(info)
}

enum Problem {
    Unreachable(String),
    Malformed(ds4_proto::wire::WireError),
    Mismatch(Mismatch),
}

async fn ask(channel: Channel) -> Result<NodeInfo, Problem> {
    let mut client =
        NodeControlClient::new(channel).max_decoding_message_size(MAX_DESCRIPTION_BYTES);
    let answer = client.describe(Versions::request());
    let reply = tokio::time::timeout(HANDSHAKE_TIMEOUT, answer)
        .await
        .map_err(|_| Problem::Unreachable("it does not answer".to_owned()))?
        .map_err(|status| Problem::Unreachable(status_text(&status)))?;
    decode_node(reply.get_ref())
        .map_err(Problem::Malformed)?
        .map_err(Problem::Mismatch)
}

/// What the node at `address` says about itself now, counters included.
///
/// # Errors
/// It cannot be reached within `patience`, or its answer cannot be understood.
pub async fn inspect(address: &str, patience: Duration) -> Result<NodeInfo, String> {
    let endpoint = channel::endpoint(address).map_err(|error| error.to_string())?;
    let asked = async {
        let channel = endpoint.connect().await.map_err(|e| reason(&e))?;
        ask(channel).await.map_err(|problem| match problem {
            Problem::Unreachable(text) => text,
            Problem::Malformed(problem) => problem.to_string(),
            Problem::Mismatch(mismatch) => mismatch.to_string(),
        })
    };
    let answer = tokio::time::timeout(patience, asked).await;
    answer.unwrap_or_else(|_| Err("it does not answer".to_owned()))
}
