//! Whether the nodes that are up hold every tile.

use std::sync::{Arc, Mutex, PoisonError};

use ds4_common::expert::MoeShape;
use ds4_common::tiles::{TileRect, TileSet};
use tokio::sync::watch;

use super::{NodeState, NodeStatus, NodeTable};
use crate::cluster::tile_assignment::uncovered;

/// What a cluster can compute at the moment, for status pages and admission.
#[derive(Debug)]
pub struct ClusterStatus {
    table: Arc<NodeTable>,
    shape: MoeShape,
    own_file: bool,
    /// The epoch of the table that was looked at last, and whether every tile was held then.
    last: Mutex<Option<(u64, bool)>>,
}

impl ClusterStatus {
    /// The status of the nodes in `table`, of a model of this shape. `own_file` says whether tiles
    /// that no node holds are computed from the coordinator's own model file.
    pub(in crate::cluster) fn new(table: Arc<NodeTable>, shape: MoeShape, own_file: bool) -> Self {
        ClusterStatus {
            table,
            shape,
            own_file,
            last: Mutex::new(None),
        }
    }

    /// Nodes that are up, and nodes that are known, each once whatever its addresses.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let nodes = self.table.nodes();
        let is_up = |node: &&NodeStatus| matches!(node.state, NodeState::Up);
        let up = nodes.iter().filter(is_up).count();
        let missing = nodes.iter().filter(|node| node.state.is_missing()).count();
        (up, up + missing)
    }

    /// The addresses of all nodes, up or not, each node once.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let nodes = self.table.nodes().into_iter();
        let counted = nodes.filter(|node| !matches!(node.state, NodeState::Alias(_)));
        counted.map(|node| node.name.to_string()).collect()
    }

    /// Whether tiles that no node holds are computed from the coordinator's own model file.
    #[must_use]
    pub fn own_file(&self) -> bool {
        self.own_file
    }

    /// Whether the nodes that are up hold every tile together.
    #[must_use]
    pub fn covered(&self) -> bool {
        let epoch = *self.table.changes().borrow();
        // Nothing that holds the lock can panic between two values.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seen, covered)) = *last
            && seen == epoch
        {
            return covered;
        }
        // A change meanwhile has another epoch, and is looked at next time.
        let covered = first_missing(self.shape, &self.table.nodes()).is_none();
        *last = Some((epoch, covered));
        covered
    }

    /// Notifies of every change of the nodes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.table.changes()
    }
}

/// The first layer with tiles that no node holds, and those tiles.
pub(super) fn first_missing(
    shape: MoeShape,
    nodes: &[NodeStatus],
) -> Option<(usize, Vec<TileRect>)> {
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
