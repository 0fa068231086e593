//! A running node: server, worker and the order in which they stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ds4_common::threads::Threads;
use ds4_proto::limits::MAX_HELLO_BYTES;
use ds4_proto::pb;
use ds4_proto::pb::node_control_server::NodeControlServer;
use ds4_proto::security::Security;
use ds4_proto::tls::Peers;
use ds4_proto::wire::{InstanceId, request_bytes};
use ds4_proto::{channel, gate};
use rustix::rand::GetRandomFlags;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::compute::{Compute, Identity};
use crate::integrity::{Background, Integrity};
use crate::memory::CallMemory;
use crate::service::NodeService;
use crate::state::{MAX_SESSIONS, NodeState, Phase};
use crate::stats::Stats;
use crate::worker::Worker;

/// The name under which health answers for the compute service.
pub const COMPUTE_SERVICE: &str = "ds4.v1.ExpertCompute";

/// The name under which health answers as long as the process runs, draining or not.
pub const CONTROL_SERVICE: &str = "ds4.v1.NodeControl";

/// Time that open connections get to close once the streams have ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How a node runs, independent of what it computes.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Compute threads; 0 takes one per core.
    pub threads: usize,
    /// Whether each compute thread stays on a core of its own.
    pub pin: bool,
    /// Most work items that wait in the queue, of all coordinators together.
    pub queue: usize,
    /// Most work items in flight on one coordinator's stream.
    pub in_flight: usize,
    /// Most bytes of inputs and unsent replies, of all coordinators together.
    pub memory: usize,
    /// Longest time that a stopping node waits for accepted work to finish.
    pub drain_timeout: Duration,
    /// What protects the node's connections.
    pub security: Security,
}

impl Default for NodeSettings {
    fn default() -> Self {
        NodeSettings {
            threads: 0,
            pin: false,
            queue: 64,
            in_flight: 8,
            memory: 1 << 30,
            drain_timeout: Duration::from_secs(30),
            security: Security::default(),
        }
    }
}

/// A node that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The operating system does not tell the socket's address.
    #[error("the listening socket has no address: {0}")]
    Address(std::io::Error),
    /// The operating system refused a thread.
    #[error("cannot start the compute threads: {0}")]
    Threads(std::io::Error),
    /// The operating system provides no random numbers.
    #[error("cannot make a random id for this node: {0}")]
    Random(std::io::Error),
}

/// A running node. Dropping it without [`RunningNode::stop`] ends its streams at once.
#[derive(Debug)]
pub struct RunningNode {
    address: SocketAddr,
    identity: Arc<Identity>,
    threads: usize,
    stats: Arc<Stats>,
    phase: watch::Sender<Phase>,
    sessions: Arc<Semaphore>,
    health: HealthReporter,
    /// Servers of health alone.
    probes: JoinSet<()>,
    shutdown: Option<oneshot::Sender<()>>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    worker: Worker,
    drain_timeout: Duration,
    /// Takes the node out of service when its weights are wrong, and back.
    follower: JoinSet<()>,
    /// Ends with the node.
    background: Option<Background>,
}

impl RunningNode {
    /// Serves `compute` on `listener`, on the current Tokio runtime; ready when it returns.
    ///
    /// # Errors
    /// The threads cannot be started, or the socket cannot be used.
    pub async fn start(
        compute: Box<dyn Compute>,
        identity: Identity,
        settings: &NodeSettings,
        listener: TcpListener,
    ) -> Result<Self, NodeError> {
        let address = listener.local_addr().map_err(NodeError::Address)?;
        let incoming = settings.security.incoming(listener, Peers::Coordinators);
        let instance = random_id().map_err(NodeError::Random)?;
        let pool = Threads::new(settings.threads, settings.pin);
        let threads = pool.count();
        let stats = Arc::new(Stats::default());
        let (queue, worker) = Worker::start(compute, pool, settings.queue, Arc::clone(&stats))
            .map_err(NodeError::Threads)?;
        let (phase, phase_seen) = watch::channel(Phase::Serving);
        let sessions = Arc::new(Semaphore::new(MAX_SESSIONS as usize));
        let largest_request = request_bytes(&identity.shape);
        let identity = Arc::new(identity);
        let service = NodeService(Arc::new(NodeState {
            identity: Arc::clone(&identity),
            instance,
            threads,
            max_in_flight: settings.in_flight.clamp(1, 1024),
            queue,
            memory: CallMemory::new(settings.memory),
            stats: Arc::clone(&stats),
            phase: phase_seen,
            sessions: Arc::clone(&sessions),
            probe: Arc::new(Semaphore::new(1)),
        }));
        let (health, health_service) = tonic_health::server::health_reporter();
        set_health(&health, ServingStatus::Serving).await;
        health
            .set_service_status(CONTROL_SERVICE, ServingStatus::Serving)
            .await;
        let control = NodeControlServer::new(service.clone());
        let control = control.max_decoding_message_size(MAX_HELLO_BYTES);
        let (shutdown, stop) = oneshot::channel::<()>();
        let server = channel::server()
            .add_service(health_service.max_decoding_message_size(MAX_HELLO_BYTES))
            .add_service(channel::probe_server(service.clone()))
            .add_service(channel::compute_server(service, largest_request))
            .add_service(control)
            .serve_with_incoming_shutdown(incoming, async {
                // A dropped handle is a stop as well.
                let _ = stop.await;
            });
        Ok(RunningNode {
            address,
            identity,
            threads,
            stats,
            phase,
            sessions,
            health,
            probes: JoinSet::new(),
            shutdown: Some(shutdown),
            server: tokio::spawn(server),
            worker,
            drain_timeout: settings.drain_timeout,
            follower: JoinSet::new(),
            background: None,
        })
    }

    /// Serves health, and nothing else, in plain text on another socket, for probes that have no
    /// certificate, such as a kubelet. Ends with the node.
    pub fn serve_health(&mut self, listener: TcpListener) {
        let service = HealthServer::new(HealthService::from_health_reporter(self.health.clone()))
            .max_decoding_message_size(MAX_HELLO_BYTES);
        let server = channel::server()
            .add_service(service)
            .serve_with_incoming(gate::incoming(listener, None));
        self.probes.spawn(async {
            if let Err(error) = server.await {
                tracing::error!(%error, "the health server failed");
            }
        });
    }

    /// Serves only while the weights are right, as far as `integrity` knows. `background` ends
    /// with the node.
    pub(crate) fn follow(&mut self, integrity: &Integrity, background: Option<Background>) {
        self.background = background;
        let mut faults = integrity.faults();
        faults.mark_changed();
        let (phase, health) = (self.phase.clone(), self.health.clone());
        self.follower.spawn(async move {
            while faults.changed().await.is_ok() {
                let fault = faults.borrow_and_update().clone();
                let (next, status) = match fault {
                    Some(fault) => (Phase::OutOfService(fault), ServingStatus::NotServing),
                    None => (Phase::Serving, ServingStatus::Serving),
                };
                let moved = phase.send_if_modified(|phase| {
                    let moves = matches!(phase, Phase::Serving | Phase::OutOfService(_));
                    let moves = moves && *phase != next;
                    if moves {
                        *phase = next;
                    }
                    moves
                });
                if moved {
                    set_health(&health, status).await;
                }
            }
        });
    }

    /// Address of the listening socket.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the node serves.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Compute threads in use.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Work done so far.
    #[must_use]
    pub fn counters(&self) -> pb::Counters {
        self.stats.snapshot()
    }

    /// Waits until the server ends by itself, which is a failure of its socket.
    pub async fn failed(&mut self) -> String {
        match (&mut self.server).await {
            Ok(Ok(())) => "the server ended".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// Drains and stops: health turns to not serving, new work is refused, accepted work is
    /// finished within the drain timeout, then the connections close. Returns whether all accepted
    /// work was finished.
    pub async fn stop(mut self) -> bool {
        self.background = None;
        self.follower.shutdown().await;
        set_health(&self.health, ServingStatus::NotServing).await;
        self.phase.send_replace(Phase::Draining);
        let idle = self.sessions.acquire_many(MAX_SESSIONS);
        let finished = tokio::time::timeout(self.drain_timeout, idle).await.is_ok();
        self.phase.send_replace(Phase::Stopping);
        drop(self.shutdown.take());
        // A server that has failed was awaited before.
        if !self.server.is_finished() {
            let closed = tokio::time::timeout(CLOSE_TIMEOUT, &mut self.server).await;
            if closed.is_err() {
                self.server.abort();
            }
        }
        let worker = self.worker;
        let ended = tokio::task::spawn_blocking(move || worker.wait(CLOSE_TIMEOUT));
        finished && ended.await.unwrap_or(false)
    }
}

/// A number that no other process has, by which coordinators know a node at each of its addresses.
fn random_id() -> std::io::Result<InstanceId> {
    let mut id = InstanceId::default();
    let mut filled = 0;
    while filled < id.len() {
        filled += rustix::rand::getrandom(&mut id[filled..], GetRandomFlags::empty())?;
    }
    Ok(id)
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in ["", COMPUTE_SERVICE] {
        health.set_service_status(service, status).await;
    }
}
