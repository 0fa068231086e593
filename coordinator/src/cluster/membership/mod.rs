//! Which nodes belong to the cluster: named one by one or by a DNS name, connected or not, of this
//! model or not.

mod coverage;
mod error;
mod ready;
mod resolve;
mod spec;
mod table;

use ds4_common::expert::MoeShape;
use ds4_proto::wire::FingerprintBytes;

pub use coverage::ClusterStatus;
pub use error::ClusterError;
pub(super) use ready::wait_ready;
pub(super) use resolve::follow;
pub use resolve::{Resolver, SystemResolver};
pub use spec::NodeSpec;
pub(super) use table::EntryId;
pub use table::{NodeState, NodeStatus, NodeTable};

/// What every node must serve.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// Fingerprint of the model.
    pub fingerprint: FingerprintBytes,
    /// Layers, width, experts per token and tile grid of the model.
    pub shape: MoeShape,
}
