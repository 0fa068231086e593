//! A cluster over sockets: membership, links and dispatcher, put together.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ds4_common::expert::ExpertBatch;
use ds4_proto::security::Security;
use tokio::task::JoinSet;

use super::dispatch::{DispatchSettings, Dispatcher};
use super::health_state::HealthState;
use super::known_calls::KnownAnswers;
use super::link::{self, LinkTarget};
use super::local_fallback::FallbackExperts;
use super::membership::{
    ClusterError, ClusterStatus, EntryId, Expectation, NodeSpec, NodeTable, Resolver,
    SystemResolver, follow, wait_ready,
};
use super::node_metrics::NodeMetrics;
use super::transport::Transport;
use crate::engine::{ExpertBackend, ExpertError, PendingExperts};

/// The nodes of a cluster, and the timeouts.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Each as [`NodeSpec`] parses it.
    pub nodes: Vec<String>,
    /// Expert groups x block strips; `None` cuts by what the nodes hold.
    pub cut: Option<(u32, u32)>,
    /// Time for the nodes to connect at the start.
    pub startup_timeout: Duration,
    /// Whether to start although some tiles are on no node, if there is a local fallback.
    pub begin_incomplete: bool,
    /// Time for one layer's experts, failover included. Afterwards the local fallback computes what
    /// is missing; without one the layer fails.
    pub deadline: Duration,
    /// Looks up DNS names.
    pub resolver: Arc<dyn Resolver>,
    /// Time between two lookups of a name.
    pub resolve_interval: Duration,
    /// How connections to the nodes are secured.
    pub security: Security,
    /// One call in so many is computed a second time elsewhere and compared; `None` for none.
    pub audit: Option<NonZeroU32>,
    /// Whether each node computes known calls before it is used.
    pub known_calls: bool,
    /// This process's own file, with which known calls are compared; without it, nodes are
    /// compared with each other.
    pub reference: Option<Arc<dyn FallbackExperts>>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        ClusterOptions {
            nodes: Vec::new(),
            cut: None,
            startup_timeout: Duration::from_secs(60),
            begin_incomplete: false,
            deadline: Duration::from_secs(60),
            resolver: Arc::new(SystemResolver),
            // The records of a headless service follow its pods within seconds.
            resolve_interval: Duration::from_secs(3),
            security: Security::default(),
            audit: NonZeroU32::new(10_000),
            known_calls: true,
            reference: None,
        }
    }
}

/// An [`ExpertBackend`] over expert nodes that may come and go. `begin` never blocks on a socket:
/// the links run as tasks on the tokio runtime on which [`ClusterBackend::connect`] was called,
/// until this is dropped.
#[derive(Debug)]
pub struct ClusterBackend {
    dispatcher: Dispatcher,
    nodes: Arc<Nodes>,
}

/// The table of nodes, and the tasks that maintain it.
#[derive(Debug)]
struct Nodes {
    table: Arc<NodeTable>,
    expected: Expectation,
    security: Security,
    known: Option<Arc<KnownAnswers>>,
    /// Aborted when this is dropped.
    tasks: Mutex<JoinSet<()>>,
}

impl ClusterBackend {
    /// Connects to the nodes and waits until they hold all tiles. From then on `fallback` computes
    /// what no node can.
    ///
    /// # Errors
    /// Names the node that is missing or does not fit the cluster, or the tiles that no node holds.
    pub async fn connect(
        options: &ClusterOptions,
        expected: &Expectation,
        fallback: Option<Arc<dyn FallbackExperts>>,
    ) -> Result<Self, ClusterError> {
        let specs = specs(&options.nodes)?;
        if let Some((groups, strips)) = options.cut {
            expected.shape.grid.cut(groups, strips)?;
        }
        let nodes = Arc::new(Nodes {
            table: Arc::default(),
            expected: expected.clone(),
            security: options.security.clone(),
            known: options
                .known_calls
                .then(|| Arc::new(KnownAnswers::new(options.reference.clone()))),
            tasks: Mutex::default(),
        });
        let mut resolving = false;
        for spec in specs {
            match spec {
                NodeSpec::One(address) => {
                    nodes.join(&address, None)?;
                }
                NodeSpec::Dns(name) => {
                    // A name that is not allowed would fail for each of its addresses.
                    options.security.endpoint(&name)?;
                    nodes.watch(name, options);
                    resolving = true;
                }
            }
        }
        let (table, shape) = (&nodes.table, expected.shape);
        let incomplete = fallback.is_some() && options.begin_incomplete;
        let own = [incomplete, fallback.is_some()];
        wait_ready(table, shape, own, resolving, options.startup_timeout).await?;
        let settings = DispatchSettings {
            cut: options.cut,
            deadline: options.deadline,
            audit: options.audit,
            // Which calls are audited should not be known beforehand, and decides no token.
            audit_seed: RandomState::new().hash_one(()),
            ..DispatchSettings::new(shape)
        };
        let transport: Arc<dyn Transport> = Arc::clone(&nodes.table) as _;
        Ok(ClusterBackend {
            dispatcher: Dispatcher::new(settings, transport, fallback),
            nodes,
        })
    }

    /// The table of nodes, which stays up to date.
    #[must_use]
    pub fn table(&self) -> Arc<NodeTable> {
        Arc::clone(&self.nodes.table)
    }

    /// What the cluster can compute, which stays up to date.
    #[must_use]
    pub fn status(&self) -> ClusterStatus {
        let (table, own_file) = (self.table(), self.dispatcher.has_fallback());
        ClusterStatus::new(table, self.nodes.expected.shape, own_file)
    }

    /// Name and health state of each node that is up.
    #[must_use]
    pub fn health_states(&self) -> Vec<(Arc<str>, HealthState)> {
        self.dispatcher.health_states()
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
    /// Starts a link on the current runtime. Over TLS the node's certificate must name `host`, if
    /// `address` is what `host` was resolved to, else the host in `address`.
    fn join(&self, address: &str, host: Option<&str>) -> Result<EntryId, ClusterError> {
        let dial = match host {
            Some(host) => self.security.endpoint_as(address, host),
            None => self.security.endpoint(address),
        }?;
        let name: Arc<str> = address.into();
        let metrics = NodeMetrics::registered(address);
        let entry = self.table.add(Arc::clone(&name), Arc::clone(&metrics));
        self.spawn(link::run(LinkTarget {
            name,
            dial,
            expected: self.expected.clone(),
            table: Arc::clone(&self.table),
            entry,
            metrics,
            known: self.known.clone(),
        }));
        Ok(entry)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of links that have ended.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Keeps a link to each address of `name`.
    fn watch(self: &Arc<Self>, name: String, options: &ClusterOptions) {
        // Weak, because the nodes own their tasks.
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
        // A node that is up stays after its address has gone, and may be named again.
        links.retain(|address, entry| self.table.list(*entry, addresses.contains(address)));
        for address in addresses {
            if links.contains_key(address) {
                continue;
            }
            match self.join(&address.to_string(), Some(host)) {
                Ok(entry) => {
                    tracing::info!(node = %address, "an expert node has joined the cluster");
                    links.insert(*address, entry);
                }
                Err(error) => {
                    tracing::error!(node = %address, %error, "an expert node cannot be used")
                }
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
