//! The progress of a long copy, as text.

use std::time::{Duration, Instant};

/// Counts the bytes of a copy and states its rate and the time left.
#[derive(Clone, Debug)]
pub struct ByteProgress {
    total: u64,
    done: u64,
    /// Bytes that were there before the copy; the rate leaves them out.
    found: u64,
    start: Instant,
    told: Instant,
}

impl ByteProgress {
    /// Shortest time between two log lines.
    const EVERY: Duration = Duration::from_secs(5);

    /// A copy of `total` bytes of which `found` are there.
    #[must_use]
    pub fn new(total: u64, found: u64) -> Self {
        let start = Instant::now();
        ByteProgress {
            total,
            done: found,
            found,
            start,
            told: start,
        }
    }

    /// `done` bytes are there. Returns a line if the last one is a while ago.
    pub fn reach(&mut self, done: u64) -> Option<String> {
        // What has to be copied again was never there.
        self.found = self.found.min(done);
        self.done = done;
        let now = Instant::now();
        if now.duration_since(self.told) < Self::EVERY {
            return None;
        }
        self.told = now;
        Some(self.line(now.duration_since(self.start)))
    }

    /// A line about the copy so far.
    #[must_use]
    pub fn summary(&self) -> String {
        self.line(self.start.elapsed())
    }

    /// Bytes per second since the start; 0 if nothing was copied.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate_after(self.start.elapsed())
    }

    fn rate_after(&self, elapsed: Duration) -> f64 {
        (self.done - self.found) as f64 / elapsed.as_secs_f64().max(1e-3)
    }

    fn line(&self, elapsed: Duration) -> String {
        let megabytes = |bytes: f64| bytes / 1e6;
        let rate = self.rate_after(elapsed);
        let left = self.total.saturating_sub(self.done) as f64;
        let time = match rate {
            0.0 => "no rate yet".to_owned(),
            rate => format!(
                "{:.0} MB/s, {} left",
                megabytes(rate),
                duration(left / rate)
            ),
        };
        format!(
            "{:.0} of {:.0} MB, {time}",
            megabytes(self.done as f64),
            megabytes(self.total as f64)
        )
    }
}

/// Seconds as `3:07` or `2:03:07`.
fn duration(seconds: f64) -> String {
    let all = seconds.min(1e9).round() as u64;
    let (hours, minutes, seconds) = (all / 3600, all / 60 % 60, all % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_does_not_count_as_speed() {
        let mut progress = ByteProgress::new(3_000_000_000, 1_000_000_000);
        assert!(progress.reach(2_000_000_000).is_none(), "too early to tell");
        let line = progress.line(Duration::from_secs(4));
        assert_eq!(line, "2000 of 3000 MB, 250 MB/s, 0:04 left");
        progress.reach(0);
        let line = progress.line(Duration::from_secs(4));
        assert_eq!(line, "0 of 3000 MB, no rate yet");
        assert_eq!(duration(7387.0), "2:03:07");
    }
}
