//! Waits at the start until the nodes hold all tiles.

use std::time::Duration;

use ds4_common::expert::MoeShape;
use ds4_common::tiles::{TileRect, TileSet};
use tokio::time::Instant;

use super::{ClusterError, NodeState, NodeStatus, NodeTable};
use crate::cluster::tile_assignment::{list, uncovered};

/// Time between log messages about missing nodes.
const MESSAGE_INTERVAL: Duration = Duration::from_secs(5);

/// Waits until the nodes that are up hold all tiles and a connection to every other node has been
/// tried, or until `timeout` has passed. Tiles that are missing then are logged if the local
/// fallback is to compute them (`fallback`). `resolving` means that a DNS name may bring nodes that
/// are not in the table yet.
///
/// # Errors
/// A node does not belong to this cluster, or tiles are missing: names the node that was awaited,
/// or the tiles.
pub(in crate::cluster) async fn wait_ready(
    table: &NodeTable,
    shape: MoeShape,
    fallback: bool,
    resolving: bool,
    timeout: Duration,
) -> Result<(), ClusterError> {
    let mut changes = table.changes();
    let deadline = Instant::now() + timeout;
    let mut next_message = Instant::now() + MESSAGE_INTERVAL;
    loop {
        changes.mark_unchanged();
        let nodes = table.nodes();
        if !resolving && let Some(error) = nodes.iter().find_map(refusal) {
            return Err(error);
        }
        let missing = first_missing(shape, &nodes);
        let over = Instant::now() >= deadline;
        let waiting = nodes.iter().find(|n| !matches!(n.state, NodeState::Up));
        match missing {
            None if table.all_tried() || over => return Ok(()),
            // No awaited node could bring them.
            Some(missing) if over || (waiting.is_none() && !resolving) => {
                return conclude(missing, waiting, fallback, timeout);
            }
            _ => {}
        }
        if Instant::now() >= next_message {
            next_message += MESSAGE_INTERVAL;
            let left = deadline.saturating_duration_since(Instant::now()).as_secs();
            for node in nodes.iter().filter(|n| !matches!(n.state, NodeState::Up)) {
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

/// The first layer with tiles that no node holds, and those tiles.
fn first_missing(shape: MoeShape, nodes: &[NodeStatus]) -> Option<(usize, Vec<TileRect>)> {
    let held = |layer| -> Vec<Option<&TileSet>> {
        nodes
            .iter()
            .map(|node| node.held.as_ref()?.layer(layer).map(AsRef::as_ref))
            .collect()
    };
    let mut last = None;
    for layer in 0..shape.layers {
        let here = held(layer);
        if last.as_ref() == Some(&here) {
            continue;
        }
        let missing = uncovered(shape.grid, &here);
        if !missing.is_empty() {
            return Some((layer, missing));
        }
        last = Some(here);
    }
    None
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
