//! How many calls may be made twice.

/// A share of the calls, and a burst on top: each call earns a part of a hedge, saved hedges are
/// bounded. Where everything is late, hedging everything would make it later.
#[derive(Clone, Debug)]
pub(super) struct HedgeBudget {
    saved: f64,
    share: f64,
    burst: f64,
}

impl HedgeBudget {
    /// `share` hedges a call in the long run; `burst` at most at once, which is there from the
    /// start.
    #[must_use]
    pub(super) fn new(share: f64, burst: f64) -> Self {
        HedgeBudget {
            saved: burst,
            share,
            burst,
        }
    }

    /// A call was made that is no hedge.
    pub(super) fn earn(&mut self) {
        self.saved = (self.saved + self.share).min(self.burst);
    }

    /// Whether `calls` more may be made; they count as made then.
    pub(super) fn spend(&mut self, calls: usize) -> bool {
        let calls = calls as f64;
        let enough = self.saved >= calls;
        if enough {
            self.saved -= calls;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_calls_and_a_burst() {
        let mut budget = HedgeBudget::new(0.1, 4.0);
        let mut hedges = 0;
        for _ in 0..1000 {
            budget.earn();
            hedges += usize::from(budget.spend(1));
        }
        assert!((100..=105).contains(&hedges), "{hedges}");
        for _ in 0..1000 {
            budget.earn();
        }
        assert!(!budget.spend(5), "what is saved is bounded");
        assert!(budget.spend(4));
        assert!(!budget.spend(1));
    }
}
