//! Progress of the nodes' pulls, as metrics and log lines.

use std::sync::{Mutex, PoisonError};

use ds4_common::slice::ByteProgress;
use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

use super::Share;

const SENT: &str = "ds4_slice_sent_bytes_total";
const DONE: &str = "ds4_slice_sent_ratio";
const FETCHES: &str = "ds4_slice_fetches";

/// Registers the descriptions of the metrics with the process's recorder.
pub fn describe() {
    describe_counter!(SENT, Unit::Bytes, "Bytes of slice tensors sent to a node.");
    describe_gauge!(
        DONE,
        "Fraction of its slice that a node has received, 0 to 1."
    );
    describe_gauge!(FETCHES, "Tensors being sent to nodes.");
}

/// The progress of one node's pull.
pub(super) struct PullProgress {
    node: String,
    /// Bytes of the tensors before each tensor.
    before: Vec<u64>,
    /// Bytes of all tensors.
    total: u64,
    /// `None` while no pull is under way.
    progress: Mutex<Option<ByteProgress>>,
    sent: Counter,
    done: Gauge,
}

impl PullProgress {
    pub(super) fn new(share: &Share) -> Self {
        let mut total = 0;
        let before = share.head.tensors().iter().map(|tensor| {
            let before = total;
            total += tensor.bytes;
            before
        });
        let before = before.collect();
        let label = || share.node.clone();
        PullProgress {
            node: label(),
            before,
            total,
            progress: Mutex::default(),
            sent: counter!(SENT, "node" => label()),
            done: gauge!(DONE, "node" => label()),
        }
    }

    /// A fetch begins at byte `offset` of tensor `tensor`.
    pub(super) fn begin(&self, tensor: usize, offset: u64) {
        let found = self.before[tensor] + offset;
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if progress.is_none() || tensor == 0 && offset == 0 {
            tracing::info!(
                node = self.node,
                megabytes = (self.total - found) / 1_000_000,
                of = self.total / 1_000_000,
                "a node began to pull its slice"
            );
            *progress = Some(ByteProgress::new(self.total, found));
        }
    }

    /// `bytes` more have been sent, up to byte `end` of tensor `tensor`.
    pub(super) fn sent(&self, tensor: usize, end: u64, bytes: u64) {
        self.sent.increment(bytes);
        let done = self.before[tensor] + end;
        self.done.set(done as f64 / self.total.max(1) as f64);
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let line = progress.as_mut().and_then(|progress| progress.reach(done));
        if let Some(line) = line {
            tracing::info!(node = self.node, "sending a slice: {line}");
        }
        if done == self.total
            && let Some(progress) = progress.take()
        {
            tracing::info!(
                node = self.node,
                "a slice has been sent: {}",
                progress.summary()
            );
        }
    }
}

/// Counts a fetch as running until it is dropped.
pub(super) struct FetchGuard(Gauge);

impl FetchGuard {
    pub(super) fn new() -> Self {
        let gauge = gauge!(FETCHES);
        gauge.increment(1.0);
        FetchGuard(gauge)
    }
}

impl Drop for FetchGuard {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
