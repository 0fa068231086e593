//! When there are enough nodes to begin.

use std::time::Duration;

use ds4_common::expert::MoeShape;
use ds4_common::tiles::{TileRect, TileSet};
use tokio::time::Instant;

use super::{ClusterError, NodeState, NodeStatus, Table};
use crate::cluster::assignment::{list, uncovered};

/// Time between messages about what is still missing.
const MESSAGE_INTERVAL: Duration = Duration::from_secs(5);

/// Waits until the nodes that are up hold all tiles and every other one was tried, or `patience`
/// is over. What no node holds then is a message if this process is to compute it (`fallback`).
/// `resolving` says that DNS names stand for nodes that may not be in the table yet.
///
/// # Errors
/// A node is none of this cluster, or tiles are missing: names the node that should have come, or
/// the tiles.
pub(in crate::cluster) async fn wait_ready(
    table: &Table,
    shape: MoeShape,
    fallback: bool,
    resolving: bool,
    patience: Duration,
) -> Result<(), ClusterError> {
    let mut changes = table.changes();
    let deadline = Instant::now() + patience;
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
            // Nobody is left who could bring them.
            Some(missing) if over || (waiting.is_none() && !resolving) => {
                return conclude(missing, waiting, fallback, patience);
            }
            _ => {}
        }
        if Instant::now() >= next_message {
            next_message += MESSAGE_INTERVAL;
            let left = deadline.saturating_duration_since(Instant::now()).as_secs();
            for node in nodes.iter().filter(|n| !matches!(n.state, NodeState::Up)) {
                tracing::warn!(node = %node.name, reason = %node.state, "waiting for an expert node, {left} s left");
            }
        }
        let until = deadline.min(next_message);
        // The table outlives this wait, and so does its sender.
        let _ = tokio::time::timeout_at(until, changes.changed()).await;
    }
}

fn refusal(node: &NodeStatus) -> Option<ClusterError> {
    match &node.state {
        NodeState::Refused(error) => Some((**error).clone()),
        _ => None,
    }
}

/// The first layer of which some tiles are nowhere, and the tiles.
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

fn conclude(
    (layer, tiles): (usize, Vec<TileRect>),
    waiting: Option<&NodeStatus>,
    fallback: bool,
    patience: Duration,
) -> Result<(), ClusterError> {
    if fallback {
        tracing::warn!(
            layer,
            tiles = list(&tiles),
            "no expert node holds some tiles: the coordinator computes them from its own file"
        );
        return Ok(());
    }
    Err(match waiting {
        Some(node) => ClusterError::Unreachable {
            node: node.name.to_string(),
            seconds: patience.as_secs(),
            reason: node.state.to_string(),
        },
        None => ClusterError::Uncovered { layer, tiles },
    })
}
