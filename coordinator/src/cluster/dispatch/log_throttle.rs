//! Limits how often a message of one kind is logged.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets one message through per interval.
#[derive(Debug)]
pub(super) struct LogThrottle {
    interval: Duration,
    /// When the last message passed, and how many were suppressed since.
    state: Mutex<(Option<Instant>, u64)>,
}

impl LogThrottle {
    pub(super) fn new(interval: Duration) -> Self {
        LogThrottle {
            interval,
            state: Mutex::default(),
        }
    }

    /// Whether a message may be logged; if so, the number suppressed since the last one.
    pub(super) fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, suppressed) = &mut *state;
        if last.is_some_and(|at| now < at + self.interval) {
            *suppressed += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_passes_per_interval_and_counts_the_suppressed() {
        let throttle = LogThrottle::new(Duration::from_secs(5));
        let start = Instant::now();
        assert_eq!(throttle.pass(start), Some(0));
        assert_eq!(throttle.pass(start + Duration::from_secs(1)), None);
        assert_eq!(throttle.pass(start + Duration::from_secs(4)), None);
        assert_eq!(throttle.pass(start + Duration::from_secs(6)), Some(2));
    }
}
