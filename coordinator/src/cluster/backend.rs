//! A cluster over sockets: membership, links and the dispatcher, put together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ds4_common::expert::ExpertBatch;
use ds4_proto::security::Security;
use tokio::task::JoinSet;

use super::dispatch::{DispatchSettings, Dispatcher, Standing};
use super::fabric::Fabric;
use super::link::{self, Target};
use super::membership::{
    ClusterError, EntryId, Expectation, NodeSpec, NodeState, NodeStatus, Resolver, SystemResolver,
    Table, follow, wait_ready,
};
use super::node_metrics::NodeMetrics;
use super::own_file::OwnExperts;
use crate::engine::{ExpertBackend, ExpertError, PendingExperts};

/// Which nodes, and how long to wait for them.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// As [`NodeSpec`] reads them.
    pub nodes: Vec<String>,
    /// Expert groups x block strips; `None` cuts by who holds what.
    pub grid: Option<(u32, u32)>,
    /// Time for the nodes to be there at the start.
    pub patience: Duration,
    /// Whether to begin although no node holds some tiles, if this process can compute them.
    pub begin_incomplete: bool,
    /// Time for one layer's experts, lost connections and retries included. What is missing then
    /// is computed from the coordinator's own file; without one it is an error.
    pub deadline: Duration,
    /// Who knows the addresses of DNS names.
    pub resolver: Arc<dyn Resolver>,
    /// Time between two questions for the addresses of a name.
    pub resolve_interval: Duration,
    /// What protects the connections to them.
    pub security: Security,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        ClusterOptions {
            nodes: Vec::new(),
            grid: None,
            patience: Duration::from_secs(60),
            begin_incomplete: false,
            deadline: Duration::from_secs(60),
            resolver: Arc::new(SystemResolver),
            // A headless service's records change within seconds of a pod.
            resolve_interval: Duration::from_secs(3),
            security: Security::default(),
        }
    }
}

/// [`ExpertBackend`] over expert nodes that may come and go. Its calls never block on a socket:
/// the links' tasks run on the tokio runtime that [`ClusterBackend::connect`] ran on, until this
/// is dropped.
#[derive(Debug)]
pub struct ClusterBackend {
    dispatcher: Dispatcher,
    nodes: Arc<Nodes>,
}

/// The table and the tasks that keep it.
#[derive(Debug)]
struct Nodes {
    table: Arc<Table>,
    expected: Expectation,
    security: Security,
    /// Ended with this.
    tasks: Mutex<JoinSet<()>>,
}

impl ClusterBackend {
    /// Looks for the nodes and waits until they hold all tiles. From then on `own` computes what
    /// they lack.
    ///
    /// # Errors
    /// Names the node that is missing or does not fit, or the tiles that nobody holds.
    pub async fn connect(
        options: &ClusterOptions,
        expected: &Expectation,
        own: Option<Arc<dyn OwnExperts>>,
    ) -> Result<Self, ClusterError> {
        let specs = specs(&options.nodes)?;
        if let Some((groups, strips)) = options.grid {
            expected.shape.grid.cut(groups, strips)?;
        }
        let nodes = Arc::new(Nodes {
            table: Arc::default(),
            expected: expected.clone(),
            security: options.security.clone(),
            tasks: Mutex::default(),
        });
        let mut resolving = false;
        for spec in specs {
            match spec {
                NodeSpec::One(address) => {
                    nodes.join(&address, None)?;
                }
                NodeSpec::Dns(name) => {
                    // What is wrong with the name would be wrong with all of its addresses.
                    options.security.endpoint(&name)?;
                    nodes.watch(name, options);
                    resolving = true;
                }
            }
        }
        let (table, shape) = (&nodes.table, expected.shape);
        let fallback = own.is_some() && options.begin_incomplete;
        wait_ready(table, shape, fallback, resolving, options.patience).await?;
        let settings = DispatchSettings {
            cut: options.grid,
            deadline: options.deadline,
            ..DispatchSettings::new(shape)
        };
        let fabric: Arc<dyn Fabric> = Arc::clone(&nodes.table) as _;
        Ok(ClusterBackend {
            dispatcher: Dispatcher::new(settings, fabric, own),
            nodes,
        })
    }

    /// The nodes and how they stand.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeStatus> {
        self.nodes.table.nodes()
    }

    /// Where to ask how the nodes stand.
    #[must_use]
    pub fn table(&self) -> Arc<Table> {
        Arc::clone(&self.nodes.table)
    }

    /// How much the nodes that are up are relied on.
    #[must_use]
    pub fn standings(&self) -> Vec<(Arc<str>, Standing)> {
        self.dispatcher.standings()
    }

    /// The nodes that take no work now, and why.
    #[must_use]
    pub fn faults(&self) -> Vec<(String, String)> {
        let fault = |node: NodeStatus| match node.state {
            NodeState::Up => None,
            state => Some((node.name.to_string(), state.to_string())),
        };
        self.nodes().into_iter().filter_map(fault).collect()
    }
}

fn specs(names: &[String]) -> Result<Vec<NodeSpec>, ClusterError> {
    if names.is_empty() {
        return Err(ClusterError::NoNodes);
    }
    let mut specs: Vec<NodeSpec> = Vec::with_capacity(names.len());
    for name in names {
        let spec = name.parse().map_err(|reason| ClusterError::Address {
            address: name.clone(),
            reason,
        })?;
        if specs.contains(&spec) {
            return Err(ClusterError::Duplicate(name.clone()));
        }
        specs.push(spec);
    }
    Ok(specs)
}

impl Nodes {
    /// Starts a link on the current runtime. Over TLS the node is to prove that it is `host`,
    /// where `address` is what that was resolved to.
    fn join(&self, address: &str, host: Option<&str>) -> Result<EntryId, ClusterError> {
        let endpoint = match host {
            Some(host) => self.security.endpoint_as(address, host),
            None => self.security.endpoint(address),
        }?;
        let name: Arc<str> = address.into();
        let metrics = Arc::new(NodeMetrics::new(address));
        let entry = self.table.add(Arc::clone(&name), Arc::clone(&metrics));
        self.spawn(link::run(Target {
            name,
            endpoint,
            expected: self.expected.clone(),
            table: Arc::clone(&self.table),
            entry,
            metrics,
        }));
        Ok(entry)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Of links that have left.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Keeps one link for each address of `name`.
    fn watch(self: &Arc<Self>, name: String, options: &ClusterOptions) {
        // Not strong: the tasks belong to the nodes.
        let nodes = Arc::downgrade(self);
        let links: Mutex<BTreeMap<SocketAddr, EntryId>> = Mutex::default();
        let host = host_of(&name).to_owned();
        let found = move |addresses: &BTreeSet<SocketAddr>| {
            let Some(nodes) = nodes.upgrade() else {
                return;
            };
            let mut links = links.lock().unwrap_or_else(PoisonError::into_inner);
            nodes.update(&host, &mut links, addresses);
        };
        let (resolver, interval) = (Arc::clone(&options.resolver), options.resolve_interval);
        self.spawn(async move { follow(name, &*resolver, interval, found).await });
    }

    fn update(
        &self,
        host: &str,
        links: &mut BTreeMap<SocketAddr, EntryId>,
        addresses: &BTreeSet<SocketAddr>,
    ) {
        // A node that is up stays although its name has gone, and may be named again.
        links.retain(|address, entry| self.table.list(*entry, addresses.contains(address)));
        for address in addresses {
            if links.contains_key(address) {
                continue;
            }
            match self.join(&address.to_string(), Some(host)) {
                Ok(entry) => {
                    tracing::info!(node = %address, "expert node has joined");
                    links.insert(*address, entry);
                }
                Err(error) => tracing::error!(node = %address, %error, "expert node is not used"),
            }
        }
    }
}

/// The host in `host:port`.
fn host_of(name: &str) -> &str {
    let host = name.rsplit_once(':').map_or(name, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

impl ExpertBackend for ClusterBackend {
    fn begin(&self, batch: Arc<ExpertBatch>) -> Result<Box<dyn PendingExperts + '_>, ExpertError> {
        self.dispatcher.begin(batch)
    }
}
