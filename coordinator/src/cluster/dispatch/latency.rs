//! How long a node takes for a call, and when its reply is late.
//!
//! The size of a call is counted in expert_block_ops, which cover the number of tokens as well as
//! that of the tiles. Each power of two has a mean and a mean deviation of its own, estimated as
//! TCP estimates round-trip times.

use std::time::Duration;

/// Number of call sizes (powers of two) that are told apart; larger calls share the last.
const SIZES: usize = 28;

/// When a reply counts as late.
#[derive(Clone, Copy, Debug)]
pub struct LatenessLimits {
    /// No reply is late before this time.
    pub floor: Duration,
    /// Longest time that a node's scatter can earn it, unless twice its mean is longer.
    pub ceiling: Duration,
    /// Time allowed to a node that has not replied yet, plus [`LatenessLimits::per_op`] for every
    /// expert_block_op.
    pub first: Duration,
    /// Time allowed for each expert_block_op of a first call.
    pub per_op: Duration,
}

impl Default for LatenessLimits {
    fn default() -> Self {
        LatenessLimits {
            floor: Duration::from_millis(25),
            ceiling: Duration::from_secs(5),
            first: Duration::from_millis(300),
            per_op: Duration::from_millis(1),
        }
    }
}

/// Estimated time of a call, in seconds.
#[derive(Clone, Copy, Debug)]
struct Estimate {
    mean: f64,
    deviation: f64,
}

/// Reply times of one node.
#[derive(Clone, Debug)]
pub(super) struct Latency {
    by_size: [Option<Estimate>; SIZES],
}

impl Default for Latency {
    fn default() -> Self {
        Latency {
            by_size: [None; SIZES],
        }
    }
}

/// Index of a call's size.
fn size(ops: u64) -> usize {
    (ops.max(1).ilog2() as usize).min(SIZES - 1)
}

impl Latency {
    /// Records a reply that took `took`.
    pub(super) fn record(&mut self, ops: u64, took: Duration) {
        let took = took.as_secs_f64();
        let slot = &mut self.by_size[size(ops)];
        *slot = Some(match *slot {
            None => Estimate {
                mean: took,
                deviation: took / 2.0,
            },
            Some(Estimate { mean, deviation }) => Estimate {
                mean: mean + (took - mean) / 8.0,
                deviation: deviation + ((took - mean).abs() - deviation) / 4.0,
            },
        });
    }

    /// Mean time of a call of `ops`; `None` before the first reply. A size without replies is
    /// assumed to take no longer than the next larger one with any, and no longer than the next
    /// smaller one in proportion.
    #[must_use]
    pub(super) fn expected(&self, ops: u64) -> Option<Duration> {
        self.estimate(ops)
            .map(|e| Duration::from_secs_f64(e.mean.max(0.0)))
    }

    fn estimate(&self, ops: u64) -> Option<Estimate> {
        let size = size(ops);
        if self.by_size[size].is_some() {
            return self.by_size[size];
        }
        let smaller = (0..size).rev().find_map(|i| {
            let scale = (size - i) as i32;
            let Estimate { mean, deviation } = self.by_size[i]?;
            let scaled = |x: f64| x * 2f64.powi(scale);
            Some(Estimate {
                mean: scaled(mean),
                deviation: scaled(deviation),
            })
        });
        let larger = self.by_size[size..].iter().find_map(|e| *e);
        match (smaller, larger) {
            (Some(a), Some(b)) if b.mean < a.mean => Some(b),
            (Some(a), _) => Some(a),
            (None, b) => b,
        }
    }

    /// Time after which the reply to a call of `ops` is late.
    #[must_use]
    pub(super) fn late_after(&self, ops: u64, limits: &LatenessLimits) -> Duration {
        let Some(Estimate { mean, deviation }) = self.estimate(ops) else {
            let ops = u32::try_from(ops).unwrap_or(u32::MAX);
            let more = limits.per_op.saturating_mul(ops);
            return limits.first.saturating_add(more).min(limits.ceiling * 4);
        };
        // A node that is always slow is not late before twice its mean, whatever the ceiling.
        let most = limits.ceiling.as_secs_f64().max(2.0 * mean);
        let late = (1.25 * mean + 4.0 * deviation).clamp(limits.floor.as_secs_f64(), most);
        Duration::from_secs_f64(late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LatenessLimits = LatenessLimits {
        floor: Duration::from_millis(10),
        ceiling: Duration::from_secs(1),
        first: Duration::from_millis(300),
        per_op: Duration::from_millis(1),
    };

    fn steady(ops: u64, took: Duration) -> Latency {
        let mut latency = Latency::default();
        for _ in 0..100 {
            latency.record(ops, took);
        }
        latency
    }

    #[test]
    fn lateness_follows_what_was_measured_within_bounds() {
        let late = |latency: &Latency, ops| latency.late_after(ops, &LIMITS);
        let unknown = Latency::default();
        assert_eq!(late(&unknown, 12), Duration::from_millis(312));
        assert_eq!(late(&unknown, u64::MAX), Duration::from_secs(4));
        let quick = steady(12, Duration::from_millis(1));
        assert_eq!(late(&quick, 12), LIMITS.floor);
        let usual = late(&steady(12, Duration::from_millis(100)), 12);
        assert!(usual > Duration::from_millis(120) && usual < Duration::from_millis(200));
        let slow = late(&steady(12, Duration::from_secs(3)), 12);
        assert!(slow > Duration::from_secs(3), "always slow is not late");
        let mut scattered = steady(12, Duration::from_millis(10));
        scattered.record(12, Duration::from_secs(30));
        assert!(late(&scattered, 12) <= Duration::from_secs(8));
    }

    #[test]
    fn sizes_that_were_not_seen_are_bounded_by_their_neighbours() {
        let mut latency = steady(16, Duration::from_millis(2));
        let expected = |latency: &Latency, ops| latency.expected(ops).expect("known");
        assert_eq!(expected(&latency, 17), expected(&latency, 31));
        let near = |a: Duration, b: Duration| a.abs_diff(b) < Duration::from_micros(1);
        assert!(near(expected(&latency, 128), Duration::from_millis(16)));
        assert!(near(expected(&latency, 1), Duration::from_millis(2)));
        latency.record(4096, Duration::from_millis(5));
        assert!(near(expected(&latency, 2048), Duration::from_millis(5)));
        assert!(Latency::default().expected(1).is_none());
    }
}
