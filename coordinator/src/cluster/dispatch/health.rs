//! What the dispatcher thinks of one connection: how fast, how loaded, and whether to rely on it.

use std::time::{Duration, Instant};

use super::deadline::{Latency, LatenessLimits};

/// First pause before a node that fell out of favour is probed, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// A node that falls out of favour again within this time waits longer for its next probe.
const RELAPSE: Duration = Duration::from_secs(10);

/// Weight of the fastest nodes.
pub(super) const FULL_WEIGHT: u32 = 8;

/// How much a node is relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It answers in time.
    Good,
    /// It was late, or is far slower than others: only for what no other node holds.
    Slow,
    /// It has not answered for so long that it may never: the last choice of all.
    Silent,
}

/// One connection's record.
#[derive(Clone, Debug)]
pub(super) struct Health {
    latency: Latency,
    standing: Standing,
    /// 1 to [`FULL_WEIGHT`]: its part of what it holds together with others.
    weight: u32,
    /// Products that it was asked for and that are not answered.
    outstanding: u64,
    answers: u64,
    /// Cost of the last answered call.
    usual: u64,
    next_probe: Instant,
    pause: Duration,
    probing: bool,
    restored: Option<Instant>,
}

impl Health {
    pub(super) fn new(now: Instant) -> Self {
        Health {
            latency: Latency::default(),
            standing: Standing::Good,
            weight: FULL_WEIGHT,
            outstanding: 0,
            answers: 0,
            usual: 1,
            next_probe: now,
            pause: FIRST_PAUSE,
            probing: false,
            restored: None,
        }
    }

    pub(super) fn standing(&self) -> Standing {
        self.standing
    }

    pub(super) fn weight(&self) -> u32 {
        self.weight
    }

    pub(super) fn latency(&self) -> &Latency {
        &self.latency
    }

    /// Answers so far, and the cost of the last one.
    pub(super) fn experience(&self) -> (u64, u64) {
        (self.answers, self.usual)
    }

    /// How soon it would come to more work: smaller is sooner.
    pub(super) fn load(&self) -> u64 {
        self.outstanding.saturating_mul(u64::from(FULL_WEIGHT)) / u64::from(self.weight.max(1))
    }

    #[cfg(test)]
    pub(super) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    pub(super) fn sent(&mut self, products: u64) {
        self.outstanding = self.outstanding.saturating_add(products);
    }

    /// A call ended, in whatever way.
    pub(super) fn ended(&mut self, products: u64) {
        self.outstanding = self.outstanding.saturating_sub(products);
    }

    /// An answer came after `took`; `fair` is what would still be acceptable from another node.
    /// Returns whether its standing changed.
    pub(super) fn answered(
        &mut self,
        products: u64,
        took: Duration,
        fair: Duration,
        limits: &LatenessLimits,
        now: Instant,
    ) -> bool {
        let in_time = took <= self.latency.late_after(products, limits).min(fair);
        if in_time && self.standing != Standing::Good {
            // What it took while something was wrong with it says nothing about now.
            self.latency = Latency::default();
            self.answers = 0;
        }
        self.latency.record(products, took);
        self.answers += 1;
        self.usual = products;
        let standing = match self.standing {
            _ if in_time => Standing::Good,
            Standing::Silent => Standing::Slow,
            other => other,
        };
        if standing == Standing::Good && self.standing != Standing::Good {
            self.restored = Some(now);
        }
        std::mem::replace(&mut self.standing, standing) != standing
    }

    /// It is no better than `standing`. Returns whether that is news.
    pub(super) fn demote(&mut self, standing: Standing, now: Instant) -> bool {
        if standing <= self.standing {
            return false;
        }
        if self.standing == Standing::Good {
            let relapse = self.restored.is_some_and(|at| now < at + RELAPSE);
            self.pause = match relapse {
                true => (self.pause * 2).min(LAST_PAUSE),
                false => FIRST_PAUSE,
            };
            self.next_probe = now + self.pause;
        }
        self.standing = standing;
        true
    }

    /// Whether it is to be probed now; it counts as being probed then.
    pub(super) fn probe_due(&mut self, now: Instant) -> bool {
        let due = self.standing != Standing::Good && !self.probing && now >= self.next_probe;
        self.probing |= due;
        due
    }

    /// There was nothing to probe it with: the next chance will do.
    pub(super) fn not_probed(&mut self) {
        self.probing = false;
    }

    /// A probe ended, in whatever way, or could not be sent.
    pub(super) fn probed(&mut self, now: Instant) {
        self.probing = false;
        self.pause = (self.pause * 2).min(LAST_PAUSE);
        self.next_probe = now + self.pause;
    }

    /// Takes the weight for a node that is `ratio` times slower than the fastest, unless the
    /// present one fits about as well: a plan should not change with every breath of the network.
    /// Returns whether it changed.
    pub(super) fn weigh(&mut self, ratio: f64) -> bool {
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

    fn steady(now: Instant) -> (Health, LatenessLimits) {
        let (mut health, limits) = (Health::new(now), LatenessLimits::default());
        for _ in 0..50 {
            assert!(!health.answered(12, MS, Duration::MAX, &limits, now));
        }
        (health, limits)
    }

    #[test]
    fn a_late_node_is_probed_and_returns_when_it_answers_in_time() {
        let start = Instant::now();
        let (mut health, limits) = steady(start);
        assert!(!health.probe_due(start), "no need");
        assert!(health.demote(Standing::Slow, start));
        assert!(!health.demote(Standing::Slow, start), "no news");
        assert!(health.demote(Standing::Silent, start));
        assert!(!health.probe_due(start + 50 * MS), "too early");
        assert!(health.probe_due(start + 100 * MS));
        assert!(!health.probe_due(start + 5000 * MS), "one at a time");
        let back = start + 6000 * MS;
        health.probed(back);
        assert!(health.answered(1, 5900 * MS, Duration::MAX, &limits, back));
        assert_eq!(health.standing(), Standing::Slow, "alive, but late");
        assert!(health.probe_due(back + 200 * MS));
        health.probed(back + 200 * MS);
        let unfair = health.answered(1, 30 * MS, 8 * MS, &limits, back + 200 * MS);
        assert!(
            !unfair && health.standing() == Standing::Slow,
            "others are far faster"
        );
        assert!(health.answered(1, MS, 8 * MS, &limits, back + 200 * MS));
        assert_eq!(health.standing(), Standing::Good);
    }

    #[test]
    fn relapses_wait_longer_up_to_a_bound() {
        let mut now = Instant::now();
        let (mut health, limits) = steady(now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert!(health.demote(Standing::Slow, now));
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
        health.demote(Standing::Slow, now + RELAPSE);
        assert!(
            health.probe_due(now + RELAPSE + FIRST_PAUSE),
            "long good since"
        );
    }

    #[test]
    fn weights_follow_the_speed_and_stick() {
        let mut health = Health::new(Instant::now());
        assert!(!health.weigh(1.0) && !health.weigh(1.7));
        assert!(health.weigh(2.2) && health.weight() == 4);
        assert!(!health.weigh(1.3) && !health.weigh(3.0), "about as well");
        assert!(health.weigh(50.0) && health.weight() == 1);
        assert!(health.weigh(1.0) && health.weight() == FULL_WEIGHT);
    }

    #[test]
    fn load_counts_what_is_not_answered_by_weight() {
        let mut health = Health::new(Instant::now());
        health.sent(10);
        assert_eq!(health.load(), 10);
        health.weigh(2.2);
        assert_eq!(health.load(), 20);
        health.ended(10);
        health.ended(10);
        assert_eq!(health.load(), 0);
    }
}
