//! Percentiles of measured times.

use std::time::Duration;

use serde_json::{Value, json};

/// Measured times, ascending.
#[derive(Clone, Debug, Default)]
pub struct Distribution(Vec<Duration>);

impl FromIterator<Duration> for Distribution {
    fn from_iter<T: IntoIterator<Item = Duration>>(times: T) -> Self {
        let mut times: Vec<Duration> = times.into_iter().collect();
        times.sort();
        Distribution(times)
    }
}

impl Distribution {
    /// Number of times.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The time that `share` of all times (0 to 1) do not exceed; zero if there are none.
    #[must_use]
    pub fn at(&self, share: f64) -> Duration {
        let last = self.0.len().saturating_sub(1);
        let index = (last as f64 * share).ceil() as usize;
        self.0.get(index.min(last)).copied().unwrap_or_default()
    }

    /// The column heads above [`Self::row`].
    #[must_use]
    pub fn heads() -> String {
        format!(
            "{:36} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "milliseconds", "count", "p50", "p90", "p99", "p99.9", "max"
        )
    }

    /// A row of a table: `name`, count, and percentiles in milliseconds.
    #[must_use]
    pub fn row(&self, name: &str) -> String {
        let times: Vec<String> = SHARES
            .iter()
            .map(|(_, share)| format!("{:9.3}", 1e3 * self.at(*share).as_secs_f64()))
            .collect();
        format!("{name:36} {:8} {}", self.count(), times.join(" "))
    }

    /// The count, and percentiles in seconds.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut all = json!({ "count": self.count() });
        for (name, share) in SHARES {
            all[name] = json!(self.at(share).as_secs_f64());
        }
        all
    }
}

const SHARES: [(&str, f64); 5] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p99_9", 0.999),
    ("max", 1.0),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_a_hundred_times() {
        let times: Distribution = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(times.at(0.0), Duration::from_millis(1));
        assert_eq!(times.at(0.9), Duration::from_millis(91));
        assert_eq!(times.at(1.0), Duration::from_millis(100));
        assert_eq!(Distribution::default().at(0.5), Duration::ZERO);
        assert_eq!(times.json()["max"], 0.1);
    }
}
