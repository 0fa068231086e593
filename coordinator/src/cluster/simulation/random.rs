//! Pseudo-random numbers that are the same for a seed on every machine and in every version, so
//! that a failed seed can be repeated.

use std::time::Duration;

use ds4_common::random::SplitMix64;

/// Draws in the forms that the simulation needs.
#[derive(Clone, Debug)]
pub(super) struct Random(SplitMix64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Random(SplitMix64::new(seed))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// 0 to `bound` - 1.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn index(&mut self, bound: usize) -> usize {
        self.below(bound as u64) as usize
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Short times as often as long ones: each doubling is as likely as any other.
    pub(super) fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let unit = self.0.unit();
        let (low, high) = (low.as_secs_f64().max(1e-6), high.as_secs_f64());
        Duration::from_secs_f64(low * (high / low).powf(unit))
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}
