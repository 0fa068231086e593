//! From flags to an engine with its experts: opens the model, starts or finds the nodes, and joins
//! them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ds4_common::expert::{ExpertStore, MoeShape};
use ds4_common::gguf::{FileWatch, GgufModel};
use ds4_common::kernels::Kernels;
use ds4_common::model::{Fingerprint, HyperParams, ModelTensors};
use ds4_common::slice::{Slice, WholeModel};
use ds4_common::tiles::TileChoice;
use ds4_expert_node::load::{ModelConfig, VerifySettings, WeightSource};
use ds4_expert_node::node::NodeSettings;
use ds4_expert_node::{EmbeddedNode, NodeConfig};
use ds4_proto::security::Security;
use tokio::net::TcpListener;

use super::model_args::{LocalFallback, ModelArgs, ModelFiles};
use crate::cluster::{
    ClusterBackend, ClusterOptions, ClusterStatus, Expectation, FallbackExperts, LocalBackend,
    LocalExperts,
};
use crate::engine::{Engine, EngineConfig, ExpertBackend};
use crate::prompt::Tokenizer;

/// A model that is mapped and checked, without threads or experts.
#[derive(Debug)]
pub struct OpenModel {
    /// The mapped files.
    pub gguf: GgufModel,
    /// The checked hyper-parameters.
    pub hp: HyperParams,
    /// Every tensor by its place in the model.
    pub tensors: ModelTensors,
    /// The name in the metadata, or the file's stem.
    pub name: String,
}

/// A ready engine and the embedded nodes that it calls.
#[derive(Debug)]
pub struct Assembly {
    /// The model that the engine runs.
    pub model: OpenModel,
    /// The engine, with its experts.
    pub engine: Engine,
    /// The kernels of engine and embedded nodes.
    pub kernels: Kernels,
    /// Nodes inside of this process; to be stopped at the end.
    pub embedded: Vec<EmbeddedNode>,
    /// What the expert nodes can compute, if there are any.
    pub cluster: Option<Arc<ClusterStatus>>,
    /// Notices changes of the model's files; the engine refuses to compute with changed ones.
    pub files: Arc<FileWatch>,
}

impl OpenModel {
    /// Maps and checks the model. Blocks.
    ///
    /// # Errors
    /// A file is missing or is not a model that this software runs; names the key or tensor.
    pub fn open(files: &ModelFiles) -> Result<Self> {
        let paths = files.paths()?;
        let gguf = GgufModel::open_parts(&paths)?;
        ensure!(
            !Slice::is_slice(&gguf),
            "{} is a slice of a model: serve it with `ds4-expert serve --slice`",
            gguf.name().display()
        );
        let hp = HyperParams::from_model(&gguf)?;
        let tensors = ModelTensors::bind(&gguf, &hp)?;
        let named = gguf.metadata().optional_str("general.name").ok().flatten();
        let file = || {
            paths[0]
                .file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
        };
        let name = named
            .filter(|n| !n.is_empty())
            .map(str::to_owned)
            .or_else(file);
        Ok(OpenModel {
            hp,
            tensors,
            name: name.unwrap_or_else(|| "model".to_owned()),
            gguf,
        })
    }

    /// The vocabulary of the model's own file.
    ///
    /// # Errors
    /// A key of the vocabulary is missing or malformed.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let metadata = self.gguf.metadata();
        let types = metadata
            .get("tokenizer.ggml.token_type")
            .map_or(Ok(Vec::new()), |_| {
                let types = metadata.u32s("tokenizer.ggml.token_type")?;
                Ok::<_, anyhow::Error>(types.into_iter().map(|t| t as i32).collect())
            })?;
        Tokenizer::new(
            metadata.strings("tokenizer.ggml.tokens")?.to_vec(),
            &types,
            metadata.strings("tokenizer.ggml.merges")?,
            metadata.u32("tokenizer.ggml.bos_token_id")?,
            metadata.u32("tokenizer.ggml.eos_token_id")?,
        )
        .with_context(|| format!("{}: cannot use its tokenizer", self.gguf.name().display()))
    }

    /// The model in the form from which slices are cut.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn whole(&self) -> Result<WholeModel> {
        let (gguf, hp) = (self.gguf.clone(), self.hp.clone());
        Ok(WholeModel::new(gguf, hp, &self.tensors)?)
    }

    /// What nodes of this model say about themselves.
    pub(super) fn expectation(&self) -> Result<Expectation> {
        Ok(Expectation {
            fingerprint: *Fingerprint::of(&self.gguf, &self.hp)?.as_bytes(),
            shape: MoeShape::of(&self.hp),
        })
    }
}

impl Assembly {
    /// Opens the model, starts embedded nodes, waits for the others, whose connections `security`
    /// protects, and builds the engine.
    ///
    /// # Errors
    /// A flag, the model or a node cannot be used.
    pub async fn open(args: &ModelArgs, security: Security) -> Result<Self> {
        let kernels = args.engine.isa.isa;
        let for_load = args.files.clone();
        let model = tokio::task::spawn_blocking(move || OpenModel::open(&for_load)).await??;
        let config = EngineConfig {
            kernels,
            numerics: args.engine.numerics,
            threads: args.engine.threads.threads,
            pin: args.engine.threads.pin,
            context: args.engine.context,
            rewind: 0,
        };
        // Checked before anything slow happens.
        config.context_of(&model.hp).context("--context")?;
        let embedded = start_embedded(args, kernels).await?;
        let nodes: Vec<String> = args
            .cluster
            .nodes
            .iter()
            .cloned()
            .chain(
                embedded
                    .iter()
                    .map(|node| embedded_address(node, &security)),
            )
            .collect();
        let mut cluster = None;
        let experts: Arc<dyn ExpertBackend> = if nodes.is_empty() {
            let store = ExpertStore::new(&model.hp, &model.tensors)?;
            Arc::new(LocalBackend::new(store, kernels))
        } else {
            let own = own_experts(&model, kernels)?;
            let options = ClusterOptions {
                nodes,
                reference: Some(Arc::clone(&own)),
                cut: args.cluster.grid.map(|cut| (cut.groups, cut.strips)),
                startup_timeout: Duration::from_secs(args.cluster.wait_for_nodes),
                begin_incomplete: args.cluster.local_fallback == LocalFallback::Always,
                deadline: Duration::from_secs(args.cluster.call_timeout),
                security,
                audit: args.cluster.audit.one_in(),
                known_calls: args.cluster.known_calls,
                ..ClusterOptions::default()
            };
            let fallback = match args.cluster.local_fallback {
                LocalFallback::Never => None,
                LocalFallback::Auto | LocalFallback::Always => Some(own),
            };
            let expected = model.expectation()?;
            let connected = ClusterBackend::connect(&options, &expected, fallback).await?;
            cluster = Some(Arc::new(connected.status()));
            Arc::new(connected)
        };
        let mut engine = Engine::new(model.hp.clone(), &model.tensors, experts, &config)?;
        let files = Arc::new(model.gguf.watch());
        engine.watch(Arc::clone(&files));
        Ok(Assembly {
            model,
            engine,
            kernels,
            embedded,
            cluster,
            files,
        })
    }
}

/// The coordinator's own model file, whose pages are read only where they are needed: what nodes are
/// compared with, and the local fallback of a cluster.
fn own_experts(model: &OpenModel, kernels: Kernels) -> Result<Arc<dyn FallbackExperts>> {
    let store = ExpertStore::new(&model.hp, &model.tensors)?;
    Ok(Arc::new(LocalExperts::new(store, kernels)))
}

/// Embedded nodes have no certificate, and their connections do not leave the process.
fn embedded_address(node: &EmbeddedNode, security: &Security) -> String {
    match security {
        Security::Tls(_) => format!("http://{}", node.address()),
        Security::Loopback | Security::Insecure => node.address(),
    }
}

/// Starts the nodes of this process, each with an equal share of the threads.
async fn start_embedded(args: &ModelArgs, kernels: Kernels) -> Result<Vec<EmbeddedNode>> {
    let count = args.embedded_nodes();
    if count == 0 {
        return Ok(Vec::new());
    }
    let config = NodeConfig {
        model: ModelConfig {
            source: WeightSource::Model {
                paths: args.files.paths()?,
                tiles: TileChoice::All,
            },
            kernels,
            populate: false,
            verify: VerifySettings::EMBEDDED,
        },
        settings: NodeSettings {
            threads: args.engine.threads.count().div_ceil(count),
            pin: args.engine.threads.pin,
            ..NodeSettings::default()
        },
    };
    let mut nodes = Vec::with_capacity(count);
    for i in 0..count {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("cannot listen on loopback")?;
        let node = EmbeddedNode::start(&config, listener).await;
        nodes.push(node.with_context(|| format!("embedded expert node {i}"))?);
    }
    Ok(nodes)
}
