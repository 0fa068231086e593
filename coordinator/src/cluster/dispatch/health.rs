//! What the dispatcher knows about one connection: how fast it is, how loaded, and whether to rely
//! on it. Work is counted in expert_block_ops, see [`super::task::expert_block_ops`].

use std::time::{Duration, Instant};

use super::latency::{Latency, LatenessLimits};
use crate::cluster::health_state::HealthState;

/// Shortest and longest pause before a node that is not healthy is probed.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// A node that is demoted again within this time after its recovery waits longer for its probe.
const RELAPSE: Duration = Duration::from_secs(10);

/// Damaged calls in a row after which a node is relied on no more.
const CORRUPT_CALLS: u32 = 3;

/// Weight of the fastest nodes.
pub(super) const FULL_WEIGHT: u32 = 8;

/// The record of one connection.
#[derive(Clone, Debug)]
pub(super) struct NodeHealth {
    latency: Latency,
    state: HealthState,
    /// 1 to [`FULL_WEIGHT`]: its relative share of tiles that others hold as well.
    weight: u32,
    /// expert_block_ops of its unanswered calls.
    outstanding: u64,
    /// Number of replies with rows since its last recovery.
    replies: u64,
    /// expert_block_ops of the last call that was answered.
    last_ops: u64,
    next_probe: Instant,
    pause: Duration,
    probing: bool,
    recovered: Option<Instant>,
    /// Damaged calls since the last good one.
    corrupt: u32,
}

impl NodeHealth {
    pub(super) fn new(now: Instant) -> Self {
        NodeHealth {
            latency: Latency::default(),
            state: HealthState::Healthy,
            weight: FULL_WEIGHT,
            outstanding: 0,
            replies: 0,
            last_ops: 1,
            next_probe: now,
            pause: FIRST_PAUSE,
            probing: false,
            recovered: None,
            corrupt: 0,
        }
    }

    pub(super) fn state(&self) -> HealthState {
        self.state
    }

    pub(super) fn weight(&self) -> u32 {
        self.weight
    }

    pub(super) fn latency(&self) -> &Latency {
        &self.latency
    }

    pub(super) fn replies(&self) -> u64 {
        self.replies
    }

    pub(super) fn last_ops(&self) -> u64 {
        self.last_ops
    }

    /// Unanswered work in proportion to the node's speed: the smaller, the sooner it could begin
    /// with more.
    pub(super) fn load(&self) -> u64 {
        self.outstanding.saturating_mul(u64::from(FULL_WEIGHT)) / u64::from(self.weight.max(1))
    }

    #[cfg(test)]
    pub(super) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// Nothing is asked of the node before `until`.
    pub(super) fn quarantine(&mut self, until: Instant) {
        self.state = HealthState::Quarantined;
        self.probing = false;
        self.pause = FIRST_PAUSE;
        self.next_probe = until;
    }

    /// The quarantine is over.
    pub(super) fn release(&mut self, now: Instant) {
        let outstanding = self.outstanding;
        *self = NodeHealth::new(now);
        self.outstanding = outstanding;
    }

    /// A call of `ops` was sent.
    pub(super) fn sent(&mut self, ops: u64) {
        self.outstanding = self.outstanding.saturating_add(ops);
    }

    /// A call of `ops` ended, with or without rows.
    pub(super) fn ended(&mut self, ops: u64) {
        self.outstanding = self.outstanding.saturating_sub(ops);
    }

    /// The numbers of a call were damaged on their way. Returns whether that has happened too
    /// often in a row.
    pub(super) fn corrupt(&mut self) -> bool {
        self.corrupt += 1;
        self.corrupt >= CORRUPT_CALLS
    }

    /// Rows came after `took`; `fair` is the longest time that is acceptable beside the other
    /// nodes. Returns whether the health state changed.
    pub(super) fn answered(
        &mut self,
        ops: u64,
        took: Duration,
        fair: Duration,
        limits: &LatenessLimits,
        now: Instant,
    ) -> bool {
        self.corrupt = 0;
        if self.state == HealthState::Quarantined {
            return false;
        }
        let in_time = took <= self.latency.late_after(ops, limits).min(fair);
        if in_time && self.state != HealthState::Healthy {
            // Times measured while something was wrong with the node say nothing about it now.
            self.latency = Latency::default();
            self.replies = 0;
        }
        self.latency.record(ops, took);
        self.replies += 1;
        self.last_ops = ops;
        let state = match self.state {
            _ if in_time => HealthState::Healthy,
            HealthState::Unresponsive => HealthState::Slow,
            other => other,
        };
        if state == HealthState::Healthy && self.state != HealthState::Healthy {
            self.recovered = Some(now);
        }
        std::mem::replace(&mut self.state, state) != state
    }

    /// Lowers the health to `state`. Returns whether that is a change.
    pub(super) fn demote(&mut self, state: HealthState, now: Instant) -> bool {
        if state <= self.state {
            return false;
        }
        if self.state == HealthState::Healthy {
            let relapse = self.recovered.is_some_and(|at| now < at + RELAPSE);
            self.pause = match relapse {
                true => (self.pause * 2).min(LAST_PAUSE),
                false => FIRST_PAUSE,
            };
            self.next_probe = now + self.pause;
        }
        self.state = state;
        true
    }

    /// Whether a probe is due; if so, the node counts as being probed.
    pub(super) fn probe_due(&mut self, now: Instant) -> bool {
        let due = self.state != HealthState::Healthy && !self.probing && now >= self.next_probe;
        self.probing |= due;
        due
    }

    /// Whether a made-up call may be sent; if so, the node counts as being probed.
    pub(super) fn begin_check(&mut self) -> bool {
        let free = self.state == HealthState::Healthy && !self.probing;
        self.probing |= free;
        free
    }

    /// The batch held nothing to probe it with: the next one may.
    pub(super) fn not_probed(&mut self) {
        self.probing = false;
    }

    /// A probe ended, with or without rows, or could not be sent.
    pub(super) fn probed(&mut self, now: Instant) {
        self.probing = false;
        // The call was to find out about its numbers, not its pace.
        if self.state == HealthState::Healthy {
            return;
        }
        self.pause = (self.pause * 2).min(LAST_PAUSE);
        self.next_probe = now + self.pause;
    }

    /// Adapts the weight of a node that is `ratio` times slower than the fastest, unless the
    /// present one fits about as well: plans should not change with every fluctuation of the
    /// network. Returns whether it changed.
    pub(super) fn adapt_weight(&mut self, ratio: f64) -> bool {
        let fits = f64::from(FULL_WEIGHT) / f64::from(self.weight);
        if ratio > fits / 1.9 && ratio < fits * 1.9 {
            return false;
        }
        let weight = match ratio {
            r if r < 1.5 => FULL_WEIGHT,
            r if r < 3.0 => FULL_WEIGHT / 2,
            r if r < 6.0 => FULL_WEIGHT / 4,
            _ => 1,
        };
        std::mem::replace(&mut self.weight, weight) != weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn steady(now: Instant) -> (NodeHealth, LatenessLimits) {
        let (mut health, limits) = (NodeHealth::new(now), LatenessLimits::default());
        for _ in 0..50 {
            assert!(!health.answered(12, MS, Duration::MAX, &limits, now));
        }
        (health, limits)
    }

    #[test]
    fn a_late_node_is_probed_and_recovers_when_it_answers_in_time() {
        let start = Instant::now();
        let (mut health, limits) = steady(start);
        assert!(!health.probe_due(start), "it is healthy");
        assert!(health.demote(HealthState::Slow, start));
        assert!(!health.demote(HealthState::Slow, start), "no change");
        assert!(health.demote(HealthState::Unresponsive, start));
        assert!(!health.probe_due(start + 50 * MS), "too early");
        assert!(health.probe_due(start + 100 * MS));
        assert!(!health.probe_due(start + 5000 * MS), "one at a time");
        let back = start + 6000 * MS;
        health.probed(back);
        assert!(health.answered(1, 5900 * MS, Duration::MAX, &limits, back));
        assert_eq!(health.state(), HealthState::Slow, "alive, but late");
        assert!(health.probe_due(back + 200 * MS));
        health.probed(back + 200 * MS);
        let unfair = health.answered(1, 30 * MS, 8 * MS, &limits, back + 200 * MS);
        assert!(
            !unfair && health.state() == HealthState::Slow,
            "others are far faster"
        );
        assert!(health.answered(1, MS, 8 * MS, &limits, back + 200 * MS));
        assert_eq!(health.state(), HealthState::Healthy);
    }

    #[test]
    fn relapses_wait_longer_up_to_a_bound() {
        let mut now = Instant::now();
        let (mut health, limits) = steady(now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert!(health.demote(HealthState::Slow, now));
            let begun = now;
            while !health.probe_due(now) {
                now += 10 * MS;
            }
            pauses.push(now - begun);
            health.probed(now);
            health.answered(12, MS, Duration::MAX, &limits, now);
        }
        assert_eq!(pauses[0], FIRST_PAUSE);
        assert!(pauses.is_sorted() && pauses[7] == LAST_PAUSE, "{pauses:?}");
        health.demote(HealthState::Slow, now + RELAPSE);
        assert!(
            health.probe_due(now + RELAPSE + FIRST_PAUSE),
            "healthy for a long time"
        );
    }

    #[test]
    fn weights_follow_the_speed_and_stick() {
        let mut health = NodeHealth::new(Instant::now());
        assert!(!health.adapt_weight(1.0) && !health.adapt_weight(1.7));
        assert!(health.adapt_weight(2.2) && health.weight() == 4);
        assert!(
            !health.adapt_weight(1.3) && !health.adapt_weight(3.0),
            "about as well"
        );
        assert!(health.adapt_weight(50.0) && health.weight() == 1);
        assert!(health.adapt_weight(1.0) && health.weight() == FULL_WEIGHT);
    }

    #[test]
    fn load_is_unanswered_work_by_weight() {
        let mut health = NodeHealth::new(Instant::now());
        health.sent(10);
        assert_eq!(health.load(), 10);
        health.adapt_weight(2.2);
        assert_eq!(health.load(), 20);
        health.ended(10);
        health.ended(10);
        assert_eq!(health.load(), 0);
    }
}
