//! What `serve` and `chat` share: a scheduler over an engine, and the words of the model.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use bytesize::ByteSize;
use clap::Args;
use ds4_common::memory_limit;
use ds4_expert_node::EmbeddedNode;

use super::assembly::{Assembly, OpenModel};
use super::model_args::{ModelArgs, count, size, up_to};
use crate::cluster::NodeTable;
use crate::prompt::Dialect;
use crate::scheduler::{Scheduler, SchedulerLimits, Vocabulary};

/// How requests are scheduled and prompts written.
#[derive(Args, Clone, Debug)]
pub struct ServiceArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    /// Requests that run at the same time
    #[arg(long, env = "DS4_MAX_SEQUENCES", default_value_t = 8, value_name = "N", value_parser = count(4096))]
    pub max_sequences: usize,

    /// Requests that wait behind them; one more is refused
    #[arg(long, env = "DS4_QUEUE", default_value_t = 64, value_name = "N", value_parser = up_to(1 << 20))]
    pub queue: usize,

    /// Prompt tokens in one step: more read a prompt faster, fewer hold up answers less
    #[arg(long, env = "DS4_CHUNK", default_value_t = 512, value_name = "TOKENS", value_parser = count(65_536))]
    pub chunk: usize,

    /// Memory for the KV caches of all running requests, such as 16GiB; requests wait until theirs
    /// fits [default: half of the memory that is available at the start]
    #[arg(long, env = "DS4_KV_MEMORY", value_name = "SIZE", value_parser = size)]
    pub kv_memory: Option<ByteSize>,

    /// Prompt form that the weights were trained on: 0731 or preview [default: by the model's name]
    #[arg(long, env = "DS4_DIALECT", value_name = "NAME", value_parser = dialect)]
    pub dialect: Option<Dialect>,
}

/// A running scheduler.
#[derive(Debug)]
pub struct Service {
    pub scheduler: Arc<Scheduler>,
    pub vocabulary: Arc<Vocabulary>,
    pub dialect: Dialect,
    pub model: OpenModel,
    pub kernels: &'static str,
    pub embedded: Vec<EmbeddedNode>,
    /// How the expert nodes stand, if there are any.
    pub cluster: Option<Arc<NodeTable>>,
}

impl Service {
    /// # Errors
    /// Names what is wrong with the flags, the model or a node.
    pub async fn start(args: &ServiceArgs) -> Result<Self> {
        let Assembly {
            model,
            engine,
            kernels,
            embedded,
            cluster,
        } = Assembly::open(&args.model).await?;
        let kv_memory = args.kv_memory.unwrap_or_else(default_kv_memory);
        let vocabulary = Arc::new(Vocabulary::new(model.tokenizer()?)?);
        let dialect = args.dialect.unwrap_or_else(|| detect_dialect(&model));
        let limits = SchedulerLimits {
            max_sequences: args.max_sequences,
            queue: args.queue,
            chunk: args.chunk,
            kv_memory: kv_memory.as_u64(),
            ..SchedulerLimits::default()
        };
        let context = engine.context();
        let scheduler = Scheduler::start(engine, Arc::clone(&vocabulary), limits)
            .with_context(|| format!("nothing can be scheduled with --kv-memory {kv_memory}"))?;
        if scheduler.context() < context {
            tracing::warn!(
                %kv_memory,
                longest = scheduler.context(),
                context,
                "the memory for KV caches holds no sequence of the whole context"
            );
        }
        let scheduler = Arc::new(scheduler);
        let kernels = kernels.name();
        Ok(Service {
            scheduler,
            vocabulary,
            dialect,
            model,
            kernels,
            embedded,
            cluster,
        })
    }
}

/// Half of what is there: the other half is for weights, buffers and everybody else.
fn default_kv_memory() -> ByteSize {
    match memory_limit::available() {
        Some(bytes) => ByteSize(bytes / 2),
        None => {
            tracing::warn!("the system does not tell its memory: --kv-memory is without a limit");
            ByteSize(u64::MAX)
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
