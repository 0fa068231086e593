//! Waits at the start until the nodes hold all tiles.

use std::sync::Arc;
use std::time::Duration;

use ds4_common::expert::MoeShape;
use ds4_common::tiles::TileRect;
use tokio::time::Instant;

use super::coverage::first_missing;
use super::{ClusterError, NodeState, NodeStatus, NodeTable};
use crate::cluster::tile_assignment::list;

/// Time between log messages about missing nodes.
const MESSAGE_INTERVAL: Duration = Duration::from_secs(5);

/// Longest wait for nodes whose work the local fallback can do: time to connect to those that are
/// there.
const FALLBACK_WAIT: Duration = Duration::from_secs(1);

/// Waits until the nodes that are up hold all tiles and a connection to every other node has been
/// tried, or until `timeout` has passed. If the local fallback is to compute the tiles that are
/// missing (`fallback`), the wait ends once every connection has been tried, after a second at the
/// latest, and they are logged. With a local fallback of any kind (`has_own`), tiles on a node that is
/// out of service count as held: it is as good as lost after the start. `resolving` means that a DNS name may bring nodes that
/// are not in the table yet.
///
/// # Errors
/// A node does not belong to this cluster, or tiles are missing: names the node that was awaited,
/// or the tiles.
pub(in crate::cluster) async fn wait_ready(
    table: &NodeTable,
    shape: MoeShape,
    [fallback, has_own]: [bool; 2],
    resolving: bool,
    timeout: Duration,
) -> Result<(), ClusterError> {
    let mut changes = table.changes();
    let longest = if fallback {
        timeout.min(FALLBACK_WAIT)
    } else {
        timeout
    };
    let deadline = Instant::now() + longest;
    let mut next_message = Instant::now() + MESSAGE_INTERVAL;
    loop {
        changes.mark_unchanged();
        let mut nodes = table.nodes();
        for node in nodes.iter_mut().filter(|_| has_own) {
            if let NodeState::OutOfService { held, .. } = &node.state {
                node.held = Some(Arc::clone(held));
            }
        }
        if !resolving && let Some(error) = nodes.iter().find_map(refusal) {
            return Err(error);
        }
        let missing = first_missing(shape, &nodes);
        let over = Instant::now() >= deadline;
        let waiting = nodes.iter().find(|n| n.state.is_missing());
        match missing {
            None if table.all_tried() || over => return Ok(()),
            // No awaited node could bring them, or nobody waits for it.
            Some(missing)
                if over
                    || (!resolving && (waiting.is_none() || (fallback && table.all_tried()))) =>
            {
                return conclude(missing, waiting, fallback, timeout);
            }
            _ => {}
        }
        if Instant::now() >= next_message {
            next_message += MESSAGE_INTERVAL;
            let left = deadline.saturating_duration_since(Instant::now()).as_secs();
            for node in nodes.iter().filter(|n| n.state.is_missing()) {
                tracing::warn!(
                    node = %node.name, reason = %node.state,
                    "waiting for an expert node for up to {left} s more"
                );
            }
        }
        let until = deadline.min(next_message);
        // The table outlives this wait, and so does its sender.
        let _ = tokio::time::timeout_at(until, changes.changed()).await;
    }
}

fn refusal(node: &NodeStatus) -> Option<ClusterError> {
    match &node.state {
        // Others may hold the same tiles, and the node may be given another slice.
        NodeState::Refused(error) if matches!(**error, ClusterError::WrongNumbers { .. }) => None,
        NodeState::Refused(error) => Some((**error).clone()),
        _ => None,
    }
}

/// The end of the wait with tiles missing.
fn conclude(
    (layer, tiles): (usize, Vec<TileRect>),
    waiting: Option<&NodeStatus>,
    fallback: bool,
    timeout: Duration,
) -> Result<(), ClusterError> {
    if fallback {
        tracing::warn!(
            layer,
            tiles = list(&tiles),
            "no expert node holds some tiles; the local fallback computes them"
        );
        return Ok(());
    }
    Err(match waiting {
        Some(node) => ClusterError::Unreachable {
            node: node.name.to_string(),
            seconds: timeout.as_secs(),
            reason: node.state.to_string(),
        },
        None => ClusterError::Uncovered { layer, tiles },
    })
}
