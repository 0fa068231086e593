//! The seam between the forward pass and the computation of the routed experts: the only door
//! through which the engine reaches them.

use std::sync::Arc;

use ds4_common::expert::{BatchError, ExpertBatch};
use ds4_common::tiles::TileError;

/// Computes routed experts, in this process or on a cluster.
pub trait ExpertBackend: Send + Sync {
    /// Starts the work and returns at once where it can, so that the caller computes the shared
    /// expert meanwhile.
    ///
    /// # Errors
    /// The work could not be handed over.
    fn begin(&self, batch: Arc<ExpertBatch>) -> Result<Box<dyn PendingExperts + '_>, ExpertError>;
}

/// One layer's routed experts under way.
pub trait PendingExperts {
    /// Waits for the result and writes the sum over each token's experts to `out`
    /// `(tokens x hidden)`. While it waits, it polls `give_up` and stops once that returns true,
    /// which means that every request of the batch was cancelled.
    ///
    /// # Errors
    /// No replica of some experts answered before the deadline, or the caller gave up.
    fn finish(
        self: Box<Self>,
        give_up: &dyn Fn() -> bool,
        out: &mut [f32],
    ) -> Result<(), ExpertError>;
}

/// Why the routed experts of a layer could not be computed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExpertError {
    /// The batch does not fit the experts that would compute it.
    #[error("the expert batch was refused: {0}")]
    Batch(#[from] BatchError),
    /// A node refused the call, and no other replica could take it.
    #[error("expert node {node} refused the call: {reason}")]
    Refused {
        /// Name of the node.
        node: String,
        /// The node's own words.
        reason: String,
    },
    /// No node that holds some tiles was reachable before the deadline.
    #[error(
        "no node could compute {tiles} of layer {layer} within {deadline_ms} ms: expert node \
         {node} is unreachable: {reason}"
    )]
    Unreachable {
        /// Name of the node that was tried last, or of one that is absent.
        node: String,
        /// What happened to the connection.
        reason: String,
        /// Index of the layer.
        layer: usize,
        /// The tiles that were not computed, as ranges of experts and blocks.
        tiles: String,
        /// Time that the layer's experts had.
        deadline_ms: u64,
    },
    /// A node took the call and did not answer before the deadline.
    #[error("expert node {node} did not answer layer {layer} ({tiles}) within {deadline_ms} ms")]
    Deadline {
        /// Name of the node.
        node: String,
        /// Index of the layer.
        layer: usize,
        /// The tiles that were not computed, as ranges of experts and blocks.
        tiles: String,
        /// Time that the layer's experts had.
        deadline_ms: u64,
    },
    /// A node's reply does not have the rows that the call requested.
    #[error("expert node {node} sent a malformed reply: {reason}")]
    Malformed {
        /// Name of the node.
        node: String,
        /// What is wrong with the reply.
        reason: String,
    },
    /// What goes into the experts is not finite.
    #[error(
        "the activations of layer {layer} are infinite or NaN before its experts: the model's \
         weights are damaged, or this machine's memory"
    )]
    InputNotFinite {
        /// Index of the layer.
        layer: usize,
    },
    /// What comes out of the experts is not finite, wherever they are computed.
    #[error(
        "{tiles} of layer {layer} gave infinity or NaN, computed by {computed_by}: the model's \
         weights are damaged there"
    )]
    NotFinite {
        /// Index of the layer.
        layer: usize,
        /// The tiles, as ranges of experts and blocks.
        tiles: String,
        /// Names of the nodes, or this process.
        computed_by: String,
    },
    /// Places that hold the same tiles gave different rows, and no other place could decide.
    #[error(
        "{tiles} of layer {layer} have different numbers wherever they are computed: {computed_by}"
    )]
    Contradiction {
        /// Index of the layer.
        layer: usize,
        /// The tiles, as ranges of experts and blocks.
        tiles: String,
        /// Names of the nodes, each with the digest of its rows.
        computed_by: String,
    },
    /// A single token's call or reply exceeds the size limit of a message.
    #[error("a single token of this model exceeds the size limit of a message to a node")]
    TooLarge,
    /// The caller gave up waiting.
    #[error("the request was cancelled while its experts were computed")]
    GivenUp,
    /// Tiles overlap, leave a gap or are too many for a call.
    #[error("the expert tiles of the nodes do not form a layer: {0}")]
    Tiles(#[from] TileError),
    /// Rows are missing at the deadline although no call is open.
    #[error("some experts were not computed although every call to a node has ended")]
    Incomplete,
}
