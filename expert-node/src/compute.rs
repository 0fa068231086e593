//! What a worker runs: the one expert function, or a stand-in in tests.

use std::sync::Arc;

use ds4_common::expert::{BatchError, ExpertBatch, MoeShape, TileComputer};
use ds4_common::kernels::Kernels;
use ds4_common::tiles::{Holdings, TileRect};
use ds4_proto::wire::FingerprintBytes;

/// Why a node computes nothing until its weights are right again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node is out of service: {0}")]
pub struct OutOfService(pub Arc<str>);

/// Computes the rows of a batch on the current rayon pool.
pub trait Compute: Send + 'static {
    /// Called before each call with its layer; may take as long as reading the layer.
    ///
    /// # Errors
    /// The weights are not to be computed with.
    fn admit(&mut self, _layer: usize) -> Result<(), OutOfService> {
        Ok(())
    }

    /// Replaces `out` by the rows that [`ExpertBatch::reply_rows`] counts, `hidden` floats each.
    /// Returns the number of expert block operations: (token, chosen expert, block) triples.
    ///
    /// # Errors
    /// The batch does not fit the weights.
    fn compute(
        &mut self,
        batch: &ExpertBatch,
        rects: &[TileRect],
        out: &mut Vec<f32>,
    ) -> Result<u64, BatchError>;

    /// Called after each call, before its rows leave.
    ///
    /// # Errors
    /// The weights may have changed meanwhile: the rows must not leave.
    fn release(&mut self) -> Result<(), OutOfService> {
        Ok(())
    }

    /// Called after a while without work: buffers may be freed.
    fn idle(&mut self) {}

    /// The kernels that calls use, for measurements.
    fn kernels(&self) -> Kernels {
        Kernels::detect()
    }

    /// The weights that calls read, for measurements.
    fn weights(&self) -> Vec<&[u8]> {
        Vec::new()
    }
}

impl Compute for TileComputer {
    fn compute(
        &mut self,
        batch: &ExpertBatch,
        rects: &[TileRect],
        out: &mut Vec<f32>,
    ) -> Result<u64, BatchError> {
        TileComputer::compute(self, batch, rects, out)
    }

    fn idle(&mut self) {
        self.release();
    }

    fn kernels(&self) -> Kernels {
        TileComputer::kernels(self)
    }

    fn weights(&self) -> Vec<&[u8]> {
        let store = self.store();
        let layers = 0..store.layers();
        layers.flat_map(|layer| store.weights(layer)).collect()
    }
}

/// What a node tells about itself, fixed while it runs.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Name of the model in its file; may be empty.
    pub model: String,
    /// Fingerprint of the model.
    pub fingerprint: FingerprintBytes,
    /// Sizes of the model's routed experts.
    pub shape: MoeShape,
    /// Tiles that the node holds, layer by layer.
    pub held: Holdings,
    /// Instruction set of the kernels.
    pub kernels: String,
    /// Bytes of the weights of the tiles held.
    pub weight_bytes: u64,
    /// Bytes of the model's files that serving them keeps in memory.
    pub resident_bytes: u64,
}

impl Identity {
    /// The size of the weights as text, and of what they keep in memory where that is more.
    #[must_use]
    pub fn weight_summary(&self) -> String {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let weights = format!("{:.1} MB of weights", megabytes(self.weight_bytes));
        match self.pays_for_more() {
            true => format!(
                "{weights}, {:.1} MB resident",
                megabytes(self.resident_bytes)
            ),
            false => weights,
        }
    }

    /// Whether more stays in memory than the weights held and a twentieth of them.
    pub(crate) fn pays_for_more(&self) -> bool {
        self.resident_bytes.saturating_sub(self.weight_bytes) > self.weight_bytes / 20
    }

    /// Model and tiles in a few words.
    #[must_use]
    pub fn summary(&self) -> String {
        let grid = self.shape.grid;
        format!("model {}, {} of a grid of {grid}", self.model, self.held)
    }
}
