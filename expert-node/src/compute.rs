//! What a worker runs: the one expert function, or a script in a test.

use ds4_common::expert::{BatchError, ExpertBatch};
use ds4_common::kernels::Kernels;
use ds4_common::tiles::{Holdings, TileRect};
use ds4_proto::wire::{FingerprintBytes, Shape};

/// Computes the rows of a checked batch on the current rayon pool.
pub trait Compute: Send + 'static {
    /// Replaces `out` by the rows that a holder of `rects` returns, `hidden` floats each, in the
    /// order of [`ExpertBatch::reply_rows`]. Returns how many (token, expert, block) products that
    /// took.
    ///
    /// # Errors
    /// The batch does not fit the weights.
    fn compute(
        &mut self,
        batch: &ExpertBatch,
        rects: &[TileRect],
        out: &mut Vec<f32>,
    ) -> Result<u64, BatchError>;

    /// No work has come for a while: buffers that it would need again may go.
    fn idle(&mut self) {}

    /// What computes, to measure with.
    fn kernels(&self) -> Kernels {
        Kernels::detect()
    }

    /// The weights that calls read, to measure with.
    fn weights(&self) -> Vec<&[u8]> {
        Vec::new()
    }
}

/// What a node tells about itself, fixed while it runs.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The model's name, as its file says.
    pub model: String,
    pub fingerprint: FingerprintBytes,
    pub shape: Shape,
    pub held: Holdings,
    /// Instruction set of the kernels.
    pub kernels: String,
    /// Bytes of the weights of the tiles held.
    pub weight_bytes: u64,
    /// Bytes of the model's files that serving them keeps in memory.
    pub resident_bytes: u64,
}

impl Identity {
    /// The bytes of the weights, and those that they keep in memory where that is notably more.
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

    /// Whether more than a twentieth comes on top of the weights held.
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
