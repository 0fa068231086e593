//! The seam between the forward pass and whoever computes the routed experts.

use std::sync::Arc;

use ds4_common::expert::{BatchError, ExpertBatch};

/// Computes routed experts, in this process or on a cluster.
pub trait ExpertBackend: Send + Sync {
    /// Starts the work and returns at once where it can, so that the caller's own work runs in
    /// the shadow of the wait.
    ///
    /// # Errors
    /// The work could not be handed over.
    fn begin(&self, batch: Arc<ExpertBatch>) -> Result<Box<dyn PendingExperts + '_>, ExpertError>;
}

/// Work that was started.
pub trait PendingExperts {
    /// Waits, and writes the sum over each token's experts to `out` (tokens x hidden). While it
    /// waits for others it asks `give_up` often whether anybody still wants the sum.
    ///
    /// # Errors
    /// No copy of some experts could be reached before the deadline, or the caller gave up.
    fn finish(
        self: Box<Self>,
        give_up: &dyn Fn() -> bool,
        out: &mut [f32],
    ) -> Result<(), ExpertError>;
}

/// Why routed experts could not be computed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExpertError {
    #[error("expert batch refused: {0}")]
    Batch(#[from] BatchError),
    #[error("expert node {node} refused the call: {reason}")]
    Refused { node: String, reason: String },
    #[error(
        "nobody could compute {tiles} of layer {layer} within {deadline_ms} ms: expert node {node} \
         is unreachable: {reason}"
    )]
    Unreachable {
        /// The last one that was tried, or one that is absent.
        node: String,
        reason: String,
        layer: usize,
        tiles: String,
        deadline_ms: u64,
    },
    #[error("expert node {node} did not answer layer {layer} ({tiles}) within {deadline_ms} ms")]
    Deadline {
        node: String,
        layer: usize,
        tiles: String,
        deadline_ms: u64,
    },
    #[error("expert node {node} sent a malformed reply: {reason}")]
    Malformed { node: String, reason: String },
    #[error("one row of this model is too large for one message to a node")]
    TooLarge,
    #[error("nobody wants the experts any more")]
    GivenUp,
    #[error("the cluster is shutting down")]
    Closed,
}
