//! A node inside of another process. It has a mapping and threads of its own, and is reached over
//! its socket like any other node.

use std::sync::Arc;

use ds4_proto::pb;
use tokio::net::TcpListener;

use crate::integrity::{Background, CheckedTiles};
use crate::load::{LoadError, LoadedTiles, ModelConfig, load};
use crate::node::{NodeError, NodeSettings, RunningNode};

/// Everything that a node needs except its socket.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// What it serves.
    pub model: ModelConfig,
    /// How it runs.
    pub settings: NodeSettings,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Threads or socket cannot be used.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The loading thread panicked, or the runtime is shutting down.
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

    /// Address of the node's socket, as `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        self.0.address().to_string()
    }

    /// Work done so far.
    #[must_use]
    pub fn counters(&self) -> pb::Counters {
        self.0.counters()
    }

    /// Drains and stops. Returns whether all accepted work was finished.
    pub async fn stop(self) -> bool {
        self.0.stop().await
    }
}

pub(crate) async fn start(
    config: &NodeConfig,
    listener: TcpListener,
) -> Result<RunningNode, StartError> {
    let model = config.model.clone();
    let loaded = tokio::task::spawn_blocking(move || load(&model)).await;
    let LoadedTiles {
        computer,
        identity,
        integrity,
        background,
    } = loaded.map_err(|_| StartError::Interrupted)??;
    let tiles = Box::new(CheckedTiles {
        computer,
        integrity: Arc::clone(&integrity),
    });
    let mut node = RunningNode::start(tiles, identity, &config.settings, listener).await?;
    // The node is ready; nothing that follows delays it.
    let background = background.map(|plan| Background::start(Arc::clone(&integrity), plan));
    node.follow(&integrity, background);
    Ok(node)
}
