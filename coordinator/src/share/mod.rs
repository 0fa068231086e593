//! Sends slices to nodes that join without weights. A slice is cut from the model while it is sent,
//! so that no slice is ever written to the coordinator's disk.
//!
//! ```text
//! Fetch ─► permit ─► blocking thread: read the model, hash ─► bounded channel ─► stream
//! ```

mod metrics;
mod send;
mod service;

#[cfg(test)]
mod tests;

use ds4_common::quant::Layout;
use ds4_common::slice::{SliceError, SliceHead, WholeModel, file_name};
use ds4_common::tiles::Holdings;

pub use self::metrics::describe;
pub use service::{ShareSettings, SliceShare, serve};

/// The slice of a model that one node gets.
#[derive(Clone, Debug)]
pub struct Share {
    /// Name of the node, which is also a file name.
    pub node: String,
    /// Head of the slice file, without the tensors' hashes.
    pub head: SliceHead,
}

/// The slices of all nodes of a cluster.
#[derive(Clone, Debug)]
pub struct Shares {
    model: WholeModel,
    all: Vec<Share>,
    /// Whether the number at the end of a node's name selects the share.
    numbered: bool,
}

/// Shares that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// Two nodes have the same name.
    #[error("two nodes are named {0}")]
    Twice(String),
    /// Tiles do not fit the model, or a name is not a file name.
    #[error(transparent)]
    Slice(#[from] SliceError),
}

impl Shares {
    /// Shares `model` among `nodes`, each a name and the tiles that it is to hold. With `numbered`,
    /// the number at the end of a node's name may select the share.
    ///
    /// # Errors
    /// Tiles do not fit the model, a name is not a file name, or two nodes have the same name.
    pub fn new(
        model: WholeModel,
        nodes: Vec<(String, Holdings)>,
        numbered: bool,
        layout: Layout,
    ) -> Result<Self, ShareError> {
        let mut all: Vec<Share> = Vec::with_capacity(nodes.len());
        for (node, holdings) in nodes {
            file_name(&node)?;
            if all.iter().any(|share| share.node == node) {
                return Err(ShareError::Twice(node));
            }
            let head = model.head(&holdings, layout)?;
            all.push(Share { node, head });
        }
        Ok(Shares {
            model,
            all,
            numbered,
        })
    }

    /// The model from which the slices are cut.
    #[must_use]
    pub fn model(&self) -> &WholeModel {
        &self.model
    }

    /// Every share, in the order of the nodes.
    #[must_use]
    pub fn all(&self) -> &[Share] {
        &self.all
    }

    /// Index of a node's share: the one of its name, else, if shares are numbered, the number at
    /// the end of its name (`expert-3` is the fourth).
    #[must_use]
    pub fn find(&self, node: &str) -> Option<usize> {
        let named = self.all.iter().position(|share| share.node == node);
        let number = || {
            let (_, number) = node.rsplit_once('-')?;
            let number: usize = number.parse().ok()?;
            (self.numbered && number < self.all.len()).then_some(number)
        };
        named.or_else(number)
    }

    /// The nodes' names, for messages.
    #[must_use]
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.all.iter().map(|share| share.node.as_str()).collect();
        names.join(", ")
    }
}
