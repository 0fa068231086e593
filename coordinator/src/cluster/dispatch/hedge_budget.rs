//! How many calls may be hedged, that is sent to a second replica because the first is late.

/// A token bucket: each call earns a fraction of a hedge, and unspent hedges are bounded. Where
/// every reply is late, hedging every call would only add load.
#[derive(Clone, Debug)]
pub(super) struct HedgeBudget {
    /// Hedges that may be made at once.
    available: f64,
    /// Hedges earned per call.
    per_call: f64,
    /// Upper bound of `available`.
    burst: f64,
}

impl HedgeBudget {
    /// Allows `per_call` hedges per call in the long run, and `burst` at once, also at the start.
    #[must_use]
    pub(super) fn new(per_call: f64, burst: f64) -> Self {
        HedgeBudget {
            available: burst,
            per_call,
            burst,
        }
    }

    /// A call was sent that is not a hedge.
    pub(super) fn earn(&mut self) {
        self.available = (self.available + self.per_call).min(self.burst);
    }

    /// Whether `calls` hedges may be made; if so, they are spent.
    pub(super) fn spend(&mut self, calls: usize) -> bool {
        let calls = calls as f64;
        let enough = self.available >= calls;
        if enough {
            self.available -= calls;
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
        assert!(!budget.spend(5), "unspent hedges are bounded");
        assert!(budget.spend(4));
        assert!(!budget.spend(1));
    }
}
