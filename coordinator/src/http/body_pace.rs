//! How fast the bodies of all requests together are taken in.
//!
//! Receiving costs processor time like everything else: copies, new pages, and the senders' own
//! share where they run on this machine. So whoever sends one large body after another would slow
//! down every running answer, although reading them has the lowest priority.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes a second of all large bodies together.
const RATE: f64 = (32 << 20) as f64;
/// What may come at once after a pause, as time at that rate: 16 MiB, more than most prompts.
const BURST: Duration = Duration::from_millis(500);
/// Shorter waits than the runtime's clock can tell are added up first.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// The pace that all bodies share.
#[derive(Debug)]
pub(super) struct BodyPace {
    schedule: Mutex<Schedule>,
}

/// When the next bytes are due.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    next: Instant,
}

impl BodyPace {
    pub(super) fn new() -> Self {
        BodyPace {
            schedule: Mutex::new(Schedule {
                next: Instant::now(),
            }),
        }
    }

    /// Returns when `bytes` more may be taken in.
    pub(super) async fn pass(&self, bytes: usize) {
        let wait = {
            let mut schedule = self.schedule.lock().unwrap_or_else(PoisonError::into_inner);
            schedule.take(bytes, Instant::now())
        };
        if wait >= SHORTEST_WAIT {
            tokio::time::sleep(wait).await;
        }
    }
}

impl Schedule {
    /// Enters `bytes`, and returns how long they have to wait.
    fn take(&mut self, bytes: usize, now: Instant) -> Duration {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let due = self.next.max(earliest);
        self.next = due + Duration::from_secs_f64(bytes as f64 / RATE);
        due.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_pass_at_the_rate_and_at_once_after_a_pause() {
        let start = Instant::now();
        let mut schedule = Schedule { next: start };
        // Four seconds' worth, taken as it comes.
        let mut now = start;
        for _ in 0..128 {
            now += schedule.take(1 << 20, now);
        }
        let spent = now - start;
        assert!(
            spent <= Duration::from_secs(4) && spent > Duration::from_millis(3900),
            "{spent:?}"
        );
        now += Duration::from_secs(60);
        let waits: Vec<Duration> = (0..18).map(|_| schedule.take(1 << 20, now)).collect();
        assert!(waits[..16].iter().all(Duration::is_zero), "{waits:?}");
        assert!(waits[17] > Duration::ZERO, "{waits:?}");
    }
}
