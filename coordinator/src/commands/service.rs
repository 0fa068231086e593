//! What `serve` and `chat` share: a scheduler over an engine, and the model's vocabulary.

use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use ds4_cli::parse;
use ds4_common::gguf::{FileChanged, FileEvent, FileWatch};
use ds4_common::memory_limit;
use ds4_common::quantity::Bytes;
use ds4_expert_node::EmbeddedNode;
use ds4_proto::security::Security;

use super::assembly::{Assembly, OpenModel};
use super::model_args::ModelArgs;
use crate::cluster::ClusterStatus;
use crate::prompt::Dialect;
use crate::scheduler::{Scheduler, SchedulerLimits, StartError, Vocabulary};

/// Nodes may be away for this long before requests are refused for it: a node that restarts, or a
/// connection that breaks, is not worth an error.
const BLINK: Duration = Duration::from_secs(1);

/// How requests are scheduled and prompts written.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Scheduling")]
pub struct ServiceArgs {
    /// Requests that run at the same time
    #[arg(
        long,
        env = "DS4_MAX_SEQUENCES",
        default_value_t = 8,
        value_name = "N",
        value_parser = parse::count(4096)
    )]
    pub max_sequences: usize,

    /// Requests that may wait for a turn; further ones are refused
    #[arg(
        long,
        env = "DS4_QUEUE",
        default_value_t = 64,
        value_name = "N",
        value_parser = parse::up_to(1 << 20)
    )]
    pub queue: usize,

    /// Prompt tokens per step: larger values speed up prompts, smaller ones delay running answers less
    #[arg(
        long,
        env = "DS4_CHUNK",
        default_value_t = 512,
        value_name = "TOKENS",
        value_parser = parse::count(65_536)
    )]
    pub chunk: usize,

    /// Memory for the KV caches of all running requests, for example 16GiB; a request waits until
    /// its cache fits [default: half of the memory available at the start]
    #[arg(long, env = "DS4_KV_MEMORY", value_name = "SIZE")]
    pub kv_memory: Option<Bytes>,

    /// Prompt format that the weights were trained on: 0731 or preview [default: by the model's
    /// name]
    #[arg(long, env = "DS4_DIALECT", value_name = "NAME", value_parser = dialect)]
    pub dialect: Option<Dialect>,

    /// What runs. Behind the others, which would get its last heading.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// A running scheduler and what its users need to know.
#[derive(Debug)]
pub struct Service {
    /// Runs requests on the engine.
    pub scheduler: Arc<Scheduler>,
    /// Turns text into tokens and back.
    pub vocabulary: Arc<Vocabulary>,
    /// How prompts are written.
    pub dialect: Dialect,
    /// The model that runs.
    pub model: OpenModel,
    /// Instruction set of the kernels.
    pub kernels: &'static str,
    /// Nodes inside of this process; to be stopped at the end.
    pub embedded: Vec<EmbeddedNode>,
    /// What the expert nodes can compute, if there are any.
    pub cluster: Option<Arc<ClusterStatus>>,
    /// Notices changes of the model's files.
    files: Arc<FileWatch>,
}

/// Time between two looks at the model's files. The engine looks at them after each step as well;
/// this is for a server without work.
const FILE_POLL: Duration = Duration::from_secs(1);

impl Service {
    /// Opens the model, joins its experts over connections that `security` protects, and starts the
    /// scheduler.
    ///
    /// # Errors
    /// A flag, the model or a node cannot be used.
    pub async fn start(args: &ServiceArgs, security: Security) -> Result<Self> {
        let Assembly {
            model,
            engine,
            kernels,
            embedded,
            cluster,
            files,
        } = Assembly::open(&args.model, security).await?;
        let kv_memory = args.kv_memory.unwrap_or_else(default_kv_memory);
        warn_of_memory(kv_memory);
        let vocabulary = Arc::new(Vocabulary::new(model.tokenizer()?)?);
        let dialect = args.dialect.unwrap_or_else(|| detect_dialect(&model));
        let limits = SchedulerLimits {
            max_sequences: args.max_sequences,
            queue: args.queue,
            chunk: args.chunk,
            kv_memory: kv_memory.0,
            ..SchedulerLimits::default()
        };
        let context = engine.context();
        let scheduler = match Scheduler::start(engine, Arc::clone(&vocabulary), limits) {
            Err(error @ StartError::KvMemory { .. }) => {
                let too_small = format!("--kv-memory {kv_memory} is too small for any request");
                return Err(error).context(too_small);
            }
            started => started?,
        };
        if scheduler.context() < context {
            tracing::warn!(
                %kv_memory,
                longest = scheduler.context(),
                context,
                "the memory for KV caches is too small for a sequence of the full context"
            );
        }
        let scheduler = Arc::new(scheduler);
        if let Some(cluster) = &cluster {
            let (cluster, scheduler) = (Arc::clone(cluster), Arc::downgrade(&scheduler));
            tokio::spawn(watch_experts(cluster, scheduler));
        }
        let kernels = kernels.name();
        Ok(Service {
            scheduler,
            vocabulary,
            dialect,
            model,
            kernels,
            embedded,
            cluster,
            files,
        })
    }

    /// Waits until a file of the model changes in place, after which nothing can be computed with
    /// it.
    pub async fn model_changed(&self) -> FileChanged {
        let mut polls = tokio::time::interval(FILE_POLL);
        loop {
            polls.tick().await;
            match self.files.poll() {
                Ok(events) => events.iter().for_each(tell),
                Err(changed) => return changed,
            }
        }
    }

    /// Ends running requests after at most `grace`, then the embedded nodes: in this order, since a
    /// node that went first would be reported as lost.
    pub async fn stop(self, grace: Duration) {
        self.scheduler.shut_down(grace).await;
        for node in self.embedded {
            node.stop().await;
        }
    }
}

fn tell(event: &FileEvent) {
    match event {
        FileEvent::Replaced(file) => tracing::info!(
            file = %file.display(),
            "the model's file was deleted or replaced: this process goes on with the old one"
        ),
        FileEvent::Touched(file) => tracing::warn!(
            file = %file.display(),
            "something about the model's file changed, though neither its length nor its time of \
             modification"
        ),
    }
}

/// Keeps the scheduler informed whether the experts can be computed, as long as it lives. Nodes that
/// return within [`BLINK`] are not missed.
async fn watch_experts(cluster: Arc<ClusterStatus>, scheduler: Weak<Scheduler>) {
    if cluster.own_file() {
        return;
    }
    let mut changes = cluster.changes();
    loop {
        changes.mark_unchanged();
        let mut available = cluster.covered();
        if !available {
            let returned = async { changes.wait_for(|_| cluster.covered()).await.is_ok() };
            available = tokio::time::timeout(BLINK, returned).await.unwrap_or(false);
        }
        match scheduler.upgrade() {
            Some(scheduler) => scheduler.set_experts_available(available),
            None => return,
        }
        if !available {
            tracing::warn!("no expert node holds some tiles: requests are refused until one does");
            if changes.wait_for(|_| cluster.covered()).await.is_err() {
                return;
            }
        } else if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Warns if the caches may take memory that is not there: the system would end the process.
fn warn_of_memory(kv_memory: Bytes) {
    if let Some(available) = memory_limit::available().map(Bytes)
        && kv_memory > available
        && kv_memory.0 < u64::MAX
    {
        tracing::warn!(
            %kv_memory, %available,
            "--kv-memory exceeds the memory that is available: the system may end the process once \
             requests fill their caches"
        );
    }
}

/// Half of the available memory: the rest is for weights, buffers and other processes.
fn default_kv_memory() -> Bytes {
    match memory_limit::available() {
        Some(bytes) => Bytes(bytes / 2),
        None => {
            tracing::warn!("the system does not report its memory: --kv-memory has no limit");
            Bytes(u64::MAX)
        }
    }
}

fn detect_dialect(model: &OpenModel) -> Dialect {
    let metadata = model.gguf.metadata();
    let version = metadata
        .optional_str("general.base_model.0.version")
        .ok()
        .flatten();
    let path = model.gguf.name().to_string_lossy();
    Dialect::detect(version.into_iter().chain([model.name.as_str(), &path]))
}

fn dialect(name: &str) -> Result<Dialect> {
    Dialect::from_name(name).ok_or_else(|| anyhow!("expected 0731 or preview"))
}
