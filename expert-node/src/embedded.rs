//! A node inside of another process: its own mapping, its own threads, reached over its socket
//! like any other.

use ds4_proto::pb;
use tokio::net::TcpListener;

use crate::load::{LoadError, ModelConfig, load};
use crate::node::{NodeError, NodeSettings, RunningNode};

/// Everything that a node needs but its socket.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub model: ModelConfig,
    pub settings: NodeSettings,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error("loading the model was interrupted")]
    Interrupted,
}

/// A node that this process runs. Dropping it ends its streams at once; [`EmbeddedNode::stop`]
/// drains first.
#[derive(Debug)]
pub struct EmbeddedNode(RunningNode);

impl EmbeddedNode {
    /// Loads the model away from the async threads and serves on `listener`; ready when it
    /// returns. The node maps the files itself and shares nothing with its host but the page
    /// cache.
    ///
    /// # Errors
    /// The model cannot be loaded, or threads or socket fail.
    pub async fn start(config: &NodeConfig, listener: TcpListener) -> Result<Self, StartError> {
        Ok(EmbeddedNode(start(config, listener).await?))
    }

    /// `host:port`, as a coordinator names it.
    #[must_use]
    pub fn address(&self) -> String {
        self.0.address().to_string()
    }

    /// Work done so far.
    #[must_use]
    pub fn counters(&self) -> pb::Counters {
        self.0.counters()
    }

    /// Drains and stops. Returns whether everything taken was finished.
    pub async fn stop(self) -> bool {
        self.0.stop().await
    }
}

pub(crate) async fn start(
    config: &NodeConfig,
    listener: TcpListener,
) -> Result<RunningNode, StartError> {
    let model = config.model.clone();
    let (compute, identity) = tokio::task::spawn_blocking(move || load(&model))
        .await
        .map_err(|_| StartError::Interrupted)??;
    Ok(RunningNode::start(Box::new(compute), identity, &config.settings, listener).await?)
}
