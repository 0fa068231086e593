//! What was measured, as a table and as JSON.

use std::fmt::Write;

use ds4_common::quant::Layout;
use serde_json::{Value, json};

/// One round: the work and what the probes reached right before it. Memory in GB/s of weights,
/// operations in GOP/s, where a multiplication and an addition count as two.
#[derive(Clone)]
pub(super) struct Sample {
    /// Milliseconds a token and layer.
    pub(super) milliseconds: f64,
    pub(super) memory: f64,
    pub(super) memory_limit: f64,
    pub(super) operations: f64,
    /// 0 where the kernels have no such probe.
    pub(super) core_limit: f64,
}

/// Medians over the rounds.
pub(super) struct Row {
    isa: &'static str,
    layout: Layout,
    tokens: usize,
    milliseconds: f64,
    pub(super) memory: f64,
    pub(super) memory_limit: f64,
    memory_share: f64,
    operations: f64,
    core_limit: f64,
    core_share: f64,
}

impl Row {
    pub(super) fn new(
        isa: &'static str,
        layout: Layout,
        tokens: usize,
        samples: &[Sample],
    ) -> Self {
        let column = |value: fn(&Sample) -> f64| median(samples.iter().map(value).collect());
        Row {
            isa,
            layout,
            tokens,
            milliseconds: column(|s| s.milliseconds),
            memory: column(|s| s.memory),
            memory_limit: column(|s| s.memory_limit),
            memory_share: column(|s| share(s.memory, s.memory_limit)),
            operations: column(|s| s.operations),
            core_limit: column(|s| s.core_limit),
            core_share: column(|s| share(s.operations, s.core_limit)),
        }
    }

    fn tokens_a_second(&self) -> f64 {
        share(1e3, self.milliseconds)
    }
}

/// 0 of nothing.
fn share(value: f64, limit: f64) -> f64 {
    if limit > 0.0 { value / limit } else { 0.0 }
}

/// The middle value, or 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

pub(super) struct Report {
    pub(super) source: &'static str,
    /// Bytes of the weights that calls choose from.
    pub(super) bytes: usize,
    pub(super) threads: usize,
    pub(super) rows: Vec<Row>,
}

impl Report {
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "{:.1} GB of {} experts, {} threads; shares are of what plain reading and bare int8 \
             products reach in the same moments\n\n{:<12} {:<7} {:>6} {:>9} {:>9} {:>7} {:>7} {:>6} \
             {:>8} {:>8} {:>6}\n",
            self.bytes as f64 / 1e9,
            self.source,
            self.threads,
            "kernels",
            "layout",
            "tokens",
            "ms/token",
            "tokens/s",
            "GB/s",
            "limit",
            "share",
            "GOP/s",
            "limit",
            "share"
        );
        for r in &self.rows {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{:<12} {:<7} {:>6} {:>9.3} {:>9.1} {:>7.1} {:>7.1} {:>5.1}% {:>8.1} {:>8.1} {:>5.1}%",
                r.isa,
                r.layout,
                r.tokens,
                r.milliseconds,
                r.tokens_a_second(),
                r.memory,
                r.memory_limit,
                100.0 * r.memory_share,
                r.operations,
                r.core_limit,
                100.0 * r.core_share
            );
        }
        text
    }

    pub(super) fn json(&self) -> String {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|r| {
                json!({
                    "kernels": r.isa,
                    "layout": r.layout.to_string(),
                    "tokens": r.tokens,
                    "ms_per_token": r.milliseconds,
                    "tokens_per_second": r.tokens_a_second(),
                    "memory_gb_per_second": r.memory,
                    "memory_limit": r.memory_limit,
                    "memory_share": r.memory_share,
                    "giga_operations_per_second": r.operations,
                    "core_limit": r.core_limit,
                    "core_share": r.core_share,
                })
            })
            .collect();
        let report = json!({
            "source": self.source,
            "weight_bytes": self.bytes,
            "threads": self.threads,
            "rows": rows,
        });
        format!("{report:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![9.0, 1.0, 4.0]), 4.0);
    }

    #[test]
    fn shares_are_of_the_same_round() {
        let sample = |memory, memory_limit| Sample {
            milliseconds: 2.0,
            memory,
            memory_limit,
            operations: 30.0,
            core_limit: 0.0,
        };
        let samples = [sample(10.0, 40.0), sample(30.0, 60.0), sample(60.0, 80.0)];
        let report = Report {
            source: "random",
            bytes: 1,
            threads: 2,
            rows: vec![Row::new("scalar", Layout::Plain, 1, &samples)],
        };
        let value: Value = serde_json::from_str(&report.json()).expect("JSON");
        assert_eq!(value["rows"][0]["memory_share"], 0.5);
        assert_eq!(value["rows"][0]["core_share"], 0.0);
        assert_eq!(value["rows"][0]["tokens_per_second"], 500.0);
        assert!(report.table().contains("50.0%"));
    }
}
