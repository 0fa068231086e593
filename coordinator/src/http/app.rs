//! The state that all handlers share.

use std::fmt;
use std::hash::RandomState;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::body_memory::{BodyMemory, default_body_memory};
use super::error::ApiError;
use super::reading_threads::ReadingThreads;
use crate::prompt::Dialect;
use crate::scheduler::{Scheduler, Vocabulary};

/// The name under which the model answers without thinking, unless a request turns it on.
pub const CHAT_ALIAS: &str = "deepseek-chat";
/// The name under which the model answers with thinking, unless a request turns it off.
pub const REASONER_ALIAS: &str = "deepseek-reasoner";

/// The model as clients know it.
#[derive(Clone, Debug)]
pub struct ModelCard {
    /// The name that answers carry.
    pub id: String,
    /// Other names under which it is served, besides [`CHAT_ALIAS`] and [`REASONER_ALIAS`].
    pub aliases: Vec<String>,
    /// Differs between models and settings whose answers may differ.
    pub fingerprint: String,
    /// The prompt format that the weights were trained on.
    pub dialect: Dialect,
}

impl ModelCard {
    /// All names, the id first.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names = vec![self.id.clone()];
        let others = self
            .aliases
            .iter()
            .map(String::as_str)
            .chain([CHAT_ALIAS, REASONER_ALIAS]);
        for name in others {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// Refuses a name that is not the model's; a request without a name gets this model.
    pub(super) fn check(&self, requested: Option<&str>) -> Result<(), ApiError> {
        let names = self.names();
        match requested {
            Some(requested) if !names.iter().any(|name| name == requested) => {
                Err(ApiError::unknown_model(requested, &names))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a model of this name thinks unless the request decides.
pub(super) fn thinks_by_default(model: Option<&str>) -> bool {
    model != Some(CHAT_ALIAS)
}

/// Settings of the HTTP side.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Most bytes of a request's body.
    pub body_limit: usize,
    /// Bytes that the bodies of all requests may take together, with what reading them takes; at
    /// least [`super::least_body_memory`].
    pub body_memory: u64,
    /// Origins whose web pages may use the API besides this server's own; `*` stands for all.
    pub cors: Vec<String>,
    /// Idle time of a stream before a keep-alive comment is sent, so that proxies do not mistake a
    /// long prompt for a dead server.
    pub keep_alive: Duration,
}

impl Default for HttpSettings {
    fn default() -> Self {
        let body_limit = 32 << 20;
        HttpSettings {
            body_limit,
            body_memory: default_body_memory(body_limit as u64, None),
            cors: Vec::new(),
            keep_alive: Duration::from_secs(5),
        }
    }
}

/// What is known of the routed experts of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertsReport {
    /// Nodes that are connected and serve.
    pub up: usize,
    /// Nodes that are known, whatever their state.
    pub total: usize,
    /// Whether the nodes that are up hold every tile together.
    pub covered: bool,
    /// Whether this process computes from its own model file what no node can.
    pub own_file: bool,
}

impl ExpertsReport {
    /// Why no request can succeed, by name.
    pub(super) fn obstacle(&self) -> Option<&'static str> {
        match (self.covered || self.own_file, self.up) {
            (true, _) => None,
            (false, 0) => Some("no_nodes"),
            (false, _) => Some("experts_missing"),
        }
    }

    /// What is worse than it should be, by name.
    pub(super) fn degradations(&self) -> Vec<&'static str> {
        let all = [
            (self.up < self.total, "nodes_missing"),
            (!self.covered && self.own_file, "local_fallback_active"),
        ];
        let true_ones = all.into_iter().filter(|(is, _)| *is);
        true_ones.map(|(_, name)| name).collect()
    }
}

type ReportExperts = Box<dyn Fn() -> ExpertsReport + Send + Sync>;

/// Renders all metrics of the process in Prometheus' text format.
pub type MetricsText = Arc<dyn Fn() -> String + Send + Sync>;

/// The state that all handlers share.
pub struct App {
    pub(super) scheduler: Arc<Scheduler>,
    pub(super) vocabulary: Arc<Vocabulary>,
    pub(super) card: ModelCard,
    pub(super) settings: HttpSettings,
    pub(super) metrics: MetricsText,
    /// Start of the server in seconds since 1970.
    pub(super) started: u64,
    pub(super) body_memory: Arc<BodyMemory>,
    pub(super) reading: ReadingThreads,
    report_experts: Option<ReportExperts>,
    ids: AnswerIds,
    client_hash: RandomState,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("card", &self.card)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl App {
    /// The state of a server that has no expert nodes to report, with the threads that read
    /// requests.
    ///
    /// # Errors
    /// The system gave no threads.
    pub fn new(
        scheduler: Arc<Scheduler>,
        vocabulary: Arc<Vocabulary>,
        card: ModelCard,
        settings: HttpSettings,
        metrics: MetricsText,
    ) -> io::Result<Self> {
        Ok(App {
            scheduler,
            vocabulary,
            card,
            body_memory: BodyMemory::new(settings.body_memory, settings.body_limit),
            reading: ReadingThreads::start()?,
            settings,
            metrics,
            started: unix_seconds(),
            report_experts: None,
            ids: AnswerIds::new(),
            client_hash: RandomState::new(),
        })
    }

    /// Has health and readiness depend on the experts, as `report` describes them.
    #[must_use]
    pub fn with_experts(self, report: impl Fn() -> ExpertsReport + Send + Sync + 'static) -> Self {
        App {
            report_experts: Some(Box::new(report)),
            ..self
        }
    }

    pub(super) fn experts(&self) -> Option<ExpertsReport> {
        self.report_experts.as_ref().map(|report| report())
    }

    /// Makes the keys of clients unlike those of any other process.
    pub(super) fn client_hash(&self) -> &RandomState {
        &self.client_hash
    }

    /// A number that no other request has.
    pub(super) fn next_id(&self) -> String {
        self.ids.next()
    }
}

pub(super) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// Numbers answers from a start that differs between processes.
struct AnswerIds {
    base: u64,
    count: AtomicU64,
}

impl AnswerIds {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanos = now.map_or(0, |time| time.as_nanos() as u64);
        AnswerIds {
            base: nanos ^ (u64::from(std::process::id()) << 48),
            count: AtomicU64::new(0),
        }
    }

    fn next(&self) -> String {
        format!(
            "{:016x}{:08x}",
            self.base,
            self.count.fetch_add(1, Ordering::Relaxed)
        )
    }
}
