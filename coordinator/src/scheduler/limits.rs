//! How much the scheduler takes on.

use std::time::Duration;

/// How much the scheduler takes on.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerLimits {
    /// Requests that run at the same time; 0 counts as 1.
    pub max_sequences: usize,
    /// Requests that wait while as many as possible run.
    pub queue: usize,
    /// Prompt tokens in one step; 0 counts as 1.
    pub chunk: usize,
    /// Longest time that a request waits in the queue before it fails.
    pub max_wait: Duration,
    /// Bytes that the KV caches of all running requests may occupy.
    pub kv_memory: u64,
}

impl Default for SchedulerLimits {
    fn default() -> Self {
        SchedulerLimits {
            max_sequences: 8,
            queue: 64,
            chunk: 512,
            max_wait: Duration::from_secs(600),
            kv_memory: u64::MAX,
        }
    }
}

impl SchedulerLimits {
    /// The limits, each at least the least with which anything runs.
    pub(super) fn at_least_one(self) -> Self {
        SchedulerLimits {
            max_sequences: self.max_sequences.max(1),
            chunk: self.chunk.max(1),
            ..self
        }
    }
}
