//! The nodes and how they stand, as a list that the links write and the dispatcher reads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use ds4_common::tiles::Holdings;
use tokio::sync::watch;

use super::ClusterError;
use crate::cluster::fabric::{Arrival, Clock, Fabric, Link, Mailbox, NodeId, View, ViewNode};
use crate::cluster::node_metrics::NodeMetrics;

/// A node's place in the table.
pub(in crate::cluster) type EntryId = u64;

/// How a node stands.
#[derive(Clone, Debug)]
pub enum NodeState {
    Up,
    /// It is about to stop.
    Draining,
    /// It is not connected, and why.
    Absent(String),
    /// It is no node of this cluster.
    Refused(Box<ClusterError>),
}

/// A node, for a person.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    pub name: Arc<str>,
    pub state: NodeState,
    /// What it holds, if it is up.
    pub held: Option<Arc<Holdings>>,
}

#[derive(Debug)]
struct Entry {
    name: Arc<str>,
    metrics: Arc<NodeMetrics>,
    state: NodeState,
    /// Present while the node is up.
    live: Option<ViewNode>,
    /// Whether its link has been up, or has failed, at least once.
    tried: bool,
    /// Whether it is still named, by the list or by DNS.
    listed: bool,
}

#[derive(Debug, Default)]
struct Entries {
    by_id: BTreeMap<EntryId, Entry>,
    last_entry: EntryId,
    last_node: u64,
    epoch: u64,
}

/// All nodes. The [`Fabric`] over sockets.
#[derive(Debug)]
pub struct Table {
    entries: Mutex<Entries>,
    view: RwLock<Arc<View>>,
    changes: watch::Sender<u64>,
}

impl Default for Table {
    fn default() -> Self {
        Table {
            entries: Mutex::default(),
            view: RwLock::default(),
            changes: watch::channel(0).0,
        }
    }
}

impl Table {
    /// Changes the entries and publishes another view.
    fn change<T>(&self, change: impl FnOnce(&mut Entries) -> T) -> T {
        // Entries are whole before anything in a change can panic.
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut entries);
        entries.epoch += 1;
        let view = Arc::new(entries.view());
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
        self.changes.send_replace(entries.epoch);
        result
    }

    fn read<T>(&self, read: impl FnOnce(&Entries) -> T) -> T {
        read(&self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A new node that was not tried yet.
    pub(in crate::cluster) fn add(&self, name: Arc<str>, metrics: Arc<NodeMetrics>) -> EntryId {
        metrics.state("absent", None);
        self.change(|entries| {
            entries.last_entry += 1;
            let entry = Entry {
                name,
                metrics,
                state: NodeState::Absent("no connection was made yet".to_owned()),
                live: None,
                tried: false,
                listed: true,
            };
            entries.by_id.insert(entries.last_entry, entry);
            entries.last_entry
        })
    }

    fn set(&self, id: EntryId, state: NodeState, live: Option<(ViewNode, u64)>) {
        self.change(|entries| {
            entries.last_node += 1;
            let node = NodeId(entries.last_node);
            let Some(entry) = entries.by_id.get_mut(&id) else {
                return;
            };
            let bytes = live.as_ref().map(|(_, bytes)| *bytes);
            entry.metrics.state(state.label(), bytes);
            entry.live = live.map(|(live, _)| ViewNode {
                id: node,
                name: Arc::clone(&entry.name),
                ..live
            });
            entry.state = state;
            entry.tried = true;
        });
    }

    /// A connection is up.
    pub(in crate::cluster) fn up(
        &self,
        id: EntryId,
        held: Arc<Holdings>,
        link: Arc<dyn Link>,
        weight_bytes: u64,
    ) {
        // Id and name are given with the entry.
        let live = ViewNode {
            id: NodeId(0),
            name: "".into(),
            held,
            link,
        };
        self.set(id, NodeState::Up, Some((live, weight_bytes)));
    }

    pub(in crate::cluster) fn draining(&self, id: EntryId) {
        self.set(id, NodeState::Draining, None);
    }

    pub(in crate::cluster) fn absent(&self, id: EntryId, reason: String) {
        self.set(id, NodeState::Absent(reason), None);
    }

    pub(in crate::cluster) fn refused(&self, id: EntryId, error: ClusterError) {
        self.set(id, NodeState::Refused(Box::new(error)), None);
    }

    /// A node is named again, or no longer. One that is up stays until its connection ends.
    /// Returns whether it is here still.
    pub(in crate::cluster) fn list(&self, id: EntryId, listed: bool) -> bool {
        self.change(|entries| {
            let entry = entries.by_id.get_mut(&id);
            entry.map(|entry| entry.listed = listed).is_some()
        })
    }

    /// Drops a node that is no longer named. Returns whether it did.
    pub(in crate::cluster) fn forget_unlisted(&self, id: EntryId) -> bool {
        let gone = self.read(|entries| entries.by_id.get(&id).is_none_or(|e| !e.listed));
        if gone {
            self.change(|entries| entries.by_id.remove(&id));
        }
        gone
    }

    /// All nodes, in the order in which they were named.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeStatus> {
        self.read(|entries| {
            let status = |entry: &Entry| NodeStatus {
                name: Arc::clone(&entry.name),
                state: entry.state.clone(),
                held: entry.live.as_ref().map(|live| Arc::clone(&live.held)),
            };
            entries.by_id.values().map(status).collect()
        })
    }

    /// Whether every node was tried at least once.
    pub(super) fn all_tried(&self) -> bool {
        self.read(|entries| entries.by_id.values().all(|entry| entry.tried))
    }

    /// Sees every change, by the epoch of the view after it.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl Entries {
    fn view(&self) -> View {
        let absent = |entry: &Entry| match &entry.state {
            NodeState::Up => None,
            state => Some((Arc::clone(&entry.name), state.to_string())),
        };
        View {
            epoch: self.epoch,
            nodes: self.by_id.values().filter_map(|e| e.live.clone()).collect(),
            absent: self.by_id.values().filter_map(absent).collect(),
        }
    }
}

impl NodeState {
    fn label(&self) -> &'static str {
        match self {
            NodeState::Up => "up",
            NodeState::Draining => "draining",
            NodeState::Absent(_) => "absent",
            NodeState::Refused(_) => "refused",
        }
    }
}

impl std::fmt::Display for NodeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NodeState::Up => f.write_str("it is up"),
            NodeState::Draining => f.write_str("it is about to stop"),
            NodeState::Absent(reason) => f.write_str(reason),
            NodeState::Refused(error) => error.fmt(f),
        }
    }
}

impl Clock for Table {
    fn now(&self) -> Instant {
        Instant::now()
    }
}

impl Fabric for Table {
    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn wait(&self, mailbox: &Mailbox, until: Instant) -> Option<Arrival> {
        mailbox.wait(until.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ds4_common::tiles::{Grid, TileSet};

    use crate::cluster::fabric::{Call, CallError, CallId, Forgotten};

    #[derive(Debug)]
    struct Nowhere;

    impl Link for Nowhere {
        fn send(&self, _: Call) -> Result<CallId, CallError> {
            Err(CallError::Busy)
        }

        fn cancel(&self, _: CallId, _: Forgotten) {}
    }

    #[test]
    fn each_connection_is_a_node_of_its_own_and_each_change_another_view() {
        let grid = Grid {
            experts: 1,
            blocks: 1,
        };
        let held = Arc::new(Holdings::uniform(grid, 1, TileSet::whole(grid)));
        let table = Table::default();
        let id = table.add("a:1".into(), Arc::new(NodeMetrics::new("a:1")));
        assert!(!table.all_tried());
        let up = || table.up(id, Arc::clone(&held), Arc::new(Nowhere), 5);
        up();
        let first = table.view();
        assert_eq!((first.nodes.len(), first.absent.len()), (1, 0));
        assert_eq!(&*first.nodes[0].name, "a:1");
        assert!(table.all_tried());
        table.absent(id, "cut".to_owned());
        let second = table.view();
        assert!(second.nodes.is_empty() && second.epoch > first.epoch);
        assert_eq!(second.absent, [("a:1".into(), "cut".to_owned())]);
        up();
        assert_ne!(table.view().nodes[0].id, first.nodes[0].id);
        assert!(!table.forget_unlisted(id));
        assert!(table.list(id, false));
        assert_eq!(table.view().nodes.len(), 1, "it is still up");
        assert!(table.forget_unlisted(id));
        assert!(table.view().nodes.is_empty() && table.nodes().is_empty());
        assert!(!table.list(id, true));
    }
}
