//! A node's work counters.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use ds4_proto::pb;

/// Counters that only grow. They are independent of each other, so no ordering is needed.
#[derive(Debug, Default)]
pub struct Stats {
    calls: AtomicU64,
    expert_block_ops: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
    compute_us: AtomicU64,
}

impl Stats {
    pub(crate) fn accepted(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    pub(crate) fn computed(&self, expert_block_ops: u64, time: Duration) {
        self.calls.fetch_add(1, Relaxed);
        self.expert_block_ops.fetch_add(expert_block_ops, Relaxed);
        self.compute_us.fetch_add(time.as_micros() as u64, Relaxed);
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
    }

    /// The counters in the form that a description carries.
    #[must_use]
    pub fn snapshot(&self) -> pb::Counters {
        pb::Counters {
            calls: self.calls.load(Relaxed),
            expert_blocks: self.expert_block_ops.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            refused: self.refused.load(Relaxed),
            compute_us: self.compute_us.load(Relaxed),
        }
    }
}
