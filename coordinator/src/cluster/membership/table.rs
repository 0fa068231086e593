//! The table of nodes and their states. Links write it, the dispatcher reads it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use ds4_common::tiles::Holdings;
use ds4_proto::wire::InstanceId;
use tokio::sync::watch;

use super::ClusterError;
use crate::cluster::node_metrics::{NodeMetrics, StateLabel};
use crate::cluster::transport::{
    CallReply, Clock, ClusterView, LiveNode, Mailbox, NodeId, NodeLink, Transport,
};

/// Identifies a node in the table; stays the same when the node reconnects.
pub(in crate::cluster) type EntryId = u64;

/// Whether a node accepts work.
#[derive(Clone, Debug)]
pub enum NodeState {
    /// It is connected and accepts work.
    Up,
    /// It is shutting down.
    Draining,
    /// Its weights are wrong.
    OutOfService {
        /// Which, in its own words.
        reason: String,
        /// The tiles that it holds and does not compute.
        held: Arc<Holdings>,
    },
    /// It is not connected; says why.
    Absent(String),
    /// It does not belong to this cluster; says why.
    Refused(Box<ClusterError>),
    /// It is another address of a node that is connected under this one.
    Alias(Arc<str>),
}

/// A node's state, for status pages and messages.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// Its address.
    pub name: Arc<str>,
    /// Whether it accepts work.
    pub state: NodeState,
    /// The tiles that it holds, if it is up.
    pub held: Option<Arc<Holdings>>,
}

#[derive(Debug)]
struct NodeEntry {
    name: Arc<str>,
    metrics: Arc<NodeMetrics>,
    state: NodeState,
    /// Present while the node is up.
    live: Option<LiveNode>,
    /// Whether a connection has succeeded or failed at least once.
    tried: bool,
    /// Whether it is still named, by a flag or by DNS.
    listed: bool,
    /// The process that this entry is connected to, or about to be.
    instance: Option<InstanceId>,
}

#[derive(Debug, Default)]
struct NodeEntries {
    by_id: BTreeMap<EntryId, NodeEntry>,
    last_entry: EntryId,
    last_node: u64,
    epoch: u64,
}

/// All nodes of the cluster: the [`Transport`] over sockets.
#[derive(Debug)]
pub struct NodeTable {
    entries: Mutex<NodeEntries>,
    view: RwLock<Arc<ClusterView>>,
    changes: watch::Sender<u64>,
}

impl Default for NodeTable {
    fn default() -> Self {
        NodeTable {
            entries: Mutex::default(),
            view: RwLock::default(),
            changes: watch::channel(0).0,
        }
    }
}

impl NodeTable {
    /// Changes the entries and publishes another snapshot.
    fn change<T>(&self, change: impl FnOnce(&mut NodeEntries) -> T) -> T {
        // Every change leaves the entries consistent before anything in it can panic.
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut entries);
        entries.epoch += 1;
        let view = Arc::new(entries.view());
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
        self.changes.send_replace(entries.epoch);
        result
    }

    fn read<T>(&self, read: impl FnOnce(&NodeEntries) -> T) -> T {
        read(&self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a node, to which no connection has been tried.
    pub(in crate::cluster) fn add(&self, name: Arc<str>, metrics: Arc<NodeMetrics>) -> EntryId {
        metrics.state(StateLabel::Absent, None);
        self.change(|entries| {
            entries.last_entry += 1;
            let entry = NodeEntry {
                name,
                metrics,
                state: NodeState::Absent("it has not been connected yet".to_owned()),
                live: None,
                tried: false,
                listed: true,
                instance: None,
            };
            entries.by_id.insert(entries.last_entry, entry);
            entries.last_entry
        })
    }

    fn set(&self, id: EntryId, state: NodeState, live: Option<(LiveNode, u64)>) {
        self.change(|entries| {
            entries.last_node += 1;
            let node = NodeId(entries.last_node);
            let Some(entry) = entries.by_id.get_mut(&id) else {
                return;
            };
            let bytes = live.as_ref().map(|(_, bytes)| *bytes);
            entry.metrics.state(state.label(), bytes);
            entry.live = live.map(|(live, _)| LiveNode {
                id: node,
                name: Arc::clone(&entry.name),
                ..live
            });
            if !matches!(state, NodeState::Up) {
                entry.instance = None;
            }
            entry.state = state;
            entry.tried = true;
        });
    }

    /// The node is connected.
    pub(in crate::cluster) fn up(
        &self,
        id: EntryId,
        held: Arc<Holdings>,
        link: Arc<dyn NodeLink>,
        weight_bytes: u64,
    ) {
        // `set` fills in id and name.
        let live = LiveNode {
            id: NodeId(0),
            name: "".into(),
            held,
            link,
        };
        self.set(id, NodeState::Up, Some((live, weight_bytes)));
    }

    /// The node is shutting down.
    pub(in crate::cluster) fn draining(&self, id: EntryId) {
        self.set(id, NodeState::Draining, None);
    }

    /// The node's weights are wrong.
    pub(in crate::cluster) fn out_of_service(
        &self,
        id: EntryId,
        reason: String,
        held: Arc<Holdings>,
    ) {
        self.set(id, NodeState::OutOfService { reason, held }, None);
    }

    /// The node is not connected.
    pub(in crate::cluster) fn absent(&self, id: EntryId, reason: String) {
        self.set(id, NodeState::Absent(reason), None);
    }

    /// The node does not belong to this cluster.
    pub(in crate::cluster) fn refused(&self, id: EntryId, error: ClusterError) {
        self.set(id, NodeState::Refused(Box::new(error)), None);
    }

    /// It is another address of the node that is connected at `of`.
    pub(in crate::cluster) fn alias(&self, id: EntryId, of: Arc<str>) {
        self.set(id, NodeState::Alias(of), None);
    }

    /// Reserves the process `instance` for this entry, until its state is set to another than up.
    ///
    /// # Errors
    /// The address of the entry that is connected to that process, or about to be.
    pub(in crate::cluster) fn claim(
        &self,
        id: EntryId,
        instance: InstanceId,
    ) -> Result<(), Arc<str>> {
        // No snapshot shows it.
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = entries.holder(id, instance) {
            return Err(Arc::clone(&holder.name));
        }
        if let Some(entry) = entries.by_id.get_mut(&id) {
            entry.instance = Some(instance);
        }
        Ok(())
    }

    /// Waits until no entry but `id` is connected to the process `instance`.
    pub(in crate::cluster) async fn until_free(&self, id: EntryId, instance: InstanceId) {
        let mut changes = self.changes();
        while self.read(|entries| entries.holder(id, instance).is_some()) {
            // The sender is this table's own.
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Sets whether a node is named. One that is up stays until its connection ends. Returns
    /// whether it is in the table.
    pub(in crate::cluster) fn list(&self, id: EntryId, listed: bool) -> bool {
        self.change(|entries| {
            let entry = entries.by_id.get_mut(&id);
            entry.map(|entry| entry.listed = listed).is_some()
        })
    }

    /// Removes a node that is no longer named. Returns whether it is gone.
    pub(in crate::cluster) fn forget_unlisted(&self, id: EntryId) -> bool {
        let gone = self.read(|entries| entries.by_id.get(&id).is_none_or(|e| !e.listed));
        if gone {
            let entry = self.change(|entries| entries.by_id.remove(&id));
            entry.inspect(|entry| entry.metrics.leave());
        }
        gone
    }

    /// The state of every node, in the order in which they were named.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeStatus> {
        self.read(|entries| {
            let status = |entry: &NodeEntry| NodeStatus {
                name: Arc::clone(&entry.name),
                state: entry.state.clone(),
                held: entry.live.as_ref().map(|live| Arc::clone(&live.held)),
            };
            entries.by_id.values().map(status).collect()
        })
    }

    /// Whether a connection to every node has been tried at least once.
    pub(super) fn all_tried(&self) -> bool {
        self.read(|entries| entries.by_id.values().all(|entry| entry.tried))
    }

    /// Notifies of every change, with the epoch of the snapshot after it.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl NodeEntries {
    /// The entry other than `id` that is connected to the process `instance`, or about to be.
    fn holder(&self, id: EntryId, instance: InstanceId) -> Option<&NodeEntry> {
        let mut others = self.by_id.iter().filter(|(other, _)| **other != id);
        let holder = others.find(|(_, entry)| entry.instance == Some(instance));
        holder.map(|(_, entry)| entry)
    }

    fn view(&self) -> ClusterView {
        let absent = |entry: &NodeEntry| match &entry.state {
            NodeState::Up | NodeState::Alias(_) => None,
            state => Some((Arc::clone(&entry.name), state.to_string())),
        };
        ClusterView {
            epoch: self.epoch,
            nodes: self.by_id.values().filter_map(|e| e.live.clone()).collect(),
            absent: self.by_id.values().filter_map(absent).collect(),
        }
    }
}

impl NodeState {
    /// Whether it stands for a node that should work and does not.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        !matches!(self, NodeState::Up | NodeState::Alias(_))
    }

    fn label(&self) -> StateLabel {
        match self {
            NodeState::Up => StateLabel::Up,
            NodeState::Draining => StateLabel::Draining,
            NodeState::OutOfService { .. } => StateLabel::OutOfService,
            NodeState::Absent(_) => StateLabel::Absent,
            NodeState::Refused(_) => StateLabel::Refused,
            NodeState::Alias(_) => StateLabel::Alias,
        }
    }
}

impl std::fmt::Display for NodeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NodeState::Up => f.write_str("it is up"),
            NodeState::Draining => f.write_str("it is shutting down"),
            NodeState::OutOfService { reason, .. } => write!(f, "it is out of service: {reason}"),
            NodeState::Absent(reason) => f.write_str(reason),
            NodeState::Refused(error) => error.fmt(f),
            NodeState::Alias(of) => write!(f, "it is the same node as {of}"),
        }
    }
}

impl Clock for NodeTable {
    fn now(&self) -> Instant {
        Instant::now()
    }
}

impl Transport for NodeTable {
    fn view(&self) -> Arc<ClusterView> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn wait(&self, mailbox: &Mailbox, until: Instant) -> Option<CallReply> {
        mailbox.wait(until.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ds4_common::tiles::{Grid, TileSet};

    use crate::cluster::transport::{CallError, CallId, CancelReason, ExpertCall};

    #[derive(Debug)]
    struct Nowhere;

    impl NodeLink for Nowhere {
        fn send(&self, _: ExpertCall) -> Result<CallId, CallError> {
            Err(CallError::Busy)
        }

        fn cancel(&self, _: CallId, _: CancelReason) {}
    }

    #[test]
    fn each_connection_has_a_node_id_of_its_own_and_each_change_another_view() {
        let grid = Grid {
            experts: 1,
            blocks: 1,
        };
        let held = Arc::new(Holdings::uniform(grid, 1, TileSet::whole(grid)));
        let table = NodeTable::default();
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

    #[test]
    fn one_process_is_one_member_whatever_its_addresses() {
        let grid = Grid {
            experts: 1,
            blocks: 1,
        };
        let held = Arc::new(Holdings::uniform(grid, 1, TileSet::whole(grid)));
        let table = NodeTable::default();
        let add = |name: &str| table.add(name.into(), Arc::new(NodeMetrics::new(name)));
        let (a, b) = (add("a:1"), add("b:1"));
        let (one, other) = ([1; 16], [2; 16]);
        assert_eq!(table.claim(a, one), Ok(()));
        assert_eq!(table.claim(a, one), Ok(()), "it has it already");
        assert_eq!(table.claim(b, one), Err("a:1".into()), "before it is up");
        table.up(a, Arc::clone(&held), Arc::new(Nowhere), 5);
        assert_eq!(table.claim(b, one), Err("a:1".into()));
        table.alias(b, "a:1".into());
        let view = table.view();
        assert_eq!((view.nodes.len(), view.absent.len()), (1, 0));
        let missing = |node: &NodeStatus| node.state.is_missing();
        assert!(!table.nodes().iter().any(missing) && table.all_tried());
        assert_eq!(
            table.claim(b, other),
            Ok(()),
            "another machine got the address"
        );
        table.absent(b, "cut".to_owned());
        table.absent(a, "cut".to_owned());
        assert_eq!(table.claim(b, one), Ok(()), "the first address has failed");
        assert_eq!(table.claim(a, one), Err("b:1".into()));
        table.list(b, false);
        assert!(table.forget_unlisted(b));
        assert_eq!(table.claim(a, one), Ok(()));
    }
}
