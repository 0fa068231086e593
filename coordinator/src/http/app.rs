//! What every handler can see.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::PrometheusHandle;

use super::error::ApiError;
use crate::cluster::NodeTable;
use crate::prompt::Dialect;
use crate::scheduler::{Scheduler, Vocabulary};

/// A name that stands for the model without thinking.
pub const CHAT_ALIAS: &str = "deepseek-chat";
/// A name that stands for the model with thinking.
pub const REASONER_ALIAS: &str = "deepseek-reasoner";

/// The model as clients know it.
#[derive(Clone, Debug)]
pub struct ModelCard {
    /// The name that answers carry.
    pub id: String,
    /// Other names under which it is served, besides [`CHAT_ALIAS`] and [`REASONER_ALIAS`].
    pub aliases: Vec<String>,
    /// Tells apart models and builds whose answers may differ.
    pub fingerprint: String,
    /// The prompt form that the weights were trained on.
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

    /// Whether the model may be called `asked`; a request that names none means this one.
    pub(super) fn check(&self, asked: Option<&str>) -> Result<(), ApiError> {
        let names = self.names();
        match asked {
            Some(asked) if !names.iter().any(|name| name == asked) => {
                Err(ApiError::unknown_model(asked, &names))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a model of this name thinks unless told otherwise.
pub(super) fn thinks_by_default(model: Option<&str>) -> bool {
    model != Some(CHAT_ALIAS)
}

/// Settings of the HTTP side.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Bytes that a request's body may have.
    pub body_limit: usize,
    /// Origins of web pages elsewhere that may use the API; `*` is all of them.
    pub cors: Vec<String>,
    /// Silence in a stream after which a comment is sent, so that no proxy takes a long prompt for
    /// a dead server.
    pub keep_alive: Duration,
}

impl Default for HttpSettings {
    fn default() -> Self {
        HttpSettings {
            body_limit: 32 << 20,
            cors: Vec::new(),
            keep_alive: Duration::from_secs(5),
        }
    }
}

/// The state behind the routes.
#[derive(Debug)]
pub struct App {
    pub(super) scheduler: Arc<Scheduler>,
    pub(super) vocabulary: Arc<Vocabulary>,
    pub(super) card: ModelCard,
    pub(super) settings: HttpSettings,
    pub(super) metrics: PrometheusHandle,
    /// How the expert nodes stand, if there are any.
    pub(super) cluster: Option<Arc<NodeTable>>,
    pub(super) started: u64,
    ids: Ids,
}

impl App {
    /// Joins the parts.
    #[must_use]
    pub fn new(
        scheduler: Arc<Scheduler>,
        vocabulary: Arc<Vocabulary>,
        card: ModelCard,
        settings: HttpSettings,
        metrics: PrometheusHandle,
    ) -> Self {
        let (started, ids) = (unix_seconds(), Ids::new());
        App {
            scheduler,
            vocabulary,
            card,
            settings,
            metrics,
            cluster: None,
            started,
            ids,
        }
    }

    /// Lets health tell of the expert nodes.
    #[must_use]
    pub fn with_cluster(self, cluster: Option<Arc<NodeTable>>) -> Self {
        App { cluster, ..self }
    }

    /// A name for an answer that no other answer has.
    pub(super) fn next_id(&self) -> String {
        self.ids.next()
    }
}

pub(super) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// Numbers answers from a start that differs from process to process.
#[derive(Debug)]
struct Ids {
    base: u64,
    count: AtomicU64,
}

impl Ids {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanos = now.map_or(0, |time| time.as_nanos() as u64);
        Ids {
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
