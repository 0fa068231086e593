//! The source of slices: nodes without weights get theirs from here, cut out of the model while
//! they are sent, so that no slice is ever on the coordinator's disk.
//!
//! ```text
//! Fetch ─► permit ─► blocking thread: read the model, hash ─► bounded channel ─► stream
//! ```

mod ledger;
mod send;
mod service;

#[cfg(test)]
mod tests;

use ds4_common::quant::Layout;
use ds4_common::slice::{SliceError, SliceHead, WholeModel, file_name};
use ds4_common::tiles::Holdings;

pub use ledger::describe;
pub use service::{ShareSettings, SliceShare, serve};

/// One node's share of a model.
#[derive(Clone, Debug)]
pub struct Share {
    pub node: String,
    /// Without hashes.
    pub head: SliceHead,
}

/// Every node's share of one model.
#[derive(Clone, Debug)]
pub struct Shares {
    model: WholeModel,
    all: Vec<Share>,
    /// Whether shares are alike, so that the number at the end of a node's name may say which.
    numbered: bool,
}

/// Shares that no node could have.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    #[error("two nodes have the name {0}")]
    Twice(String),
    #[error(transparent)]
    Slice(#[from] SliceError),
}

impl Shares {
    /// # Errors
    /// Tiles do not fit the model, a name cannot name a file, or two nodes have the same.
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

    #[must_use]
    pub fn model(&self) -> &WholeModel {
        &self.model
    }

    #[must_use]
    pub fn all(&self) -> &[Share] {
        &self.all
    }

    /// The share of a node, by number: the one of its name, or, where shares are numbered, the one
    /// of the number that its name ends in (`expert-3` is the fourth).
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

    /// For messages.
    #[must_use]
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.all.iter().map(|share| share.node.as_str()).collect();
        names.join(", ")
    }
}
