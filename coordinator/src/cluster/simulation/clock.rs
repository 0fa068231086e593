//! A clock that moves only when it is set.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::transport::Clock;

#[derive(Debug)]
pub(super) struct SimClock {
    start: Instant,
    nanos: AtomicU64,
}

impl SimClock {
    pub(super) fn new() -> Self {
        SimClock {
            start: Instant::now(),
            nanos: AtomicU64::new(0),
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    /// Never backwards.
    pub(super) fn set(&self, elapsed: Duration) {
        self.nanos
            .fetch_max(elapsed.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(super) fn since_start(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.start)
    }
}

impl Clock for SimClock {
    fn now(&self) -> Instant {
        self.start + self.elapsed()
    }
}
