//! What is counted about one node.

use std::time::Duration;

use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_histogram, histogram};

const CALLS: &str = "ds4_node_calls_total";
const CALL_TIME: &str = "ds4_node_call_seconds";
const BYTES: &str = "ds4_node_bytes_total";

/// Bucket bounds of the time of a call: on a fast network one token's experts take a fraction of
/// a millisecond, and a call may wait for its node for minutes.
pub const CALL_SECONDS: (&str, &[f64]) = (
    CALL_TIME,
    &[
        0.000_1, 0.000_25, 0.000_5, 0.001, 0.001_5, 0.002, 0.003, 0.005, 0.007_5, 0.01, 0.02, 0.04,
        0.08, 0.15, 0.3, 0.6, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    ],
);

/// Registers the descriptions.
pub fn describe() {
    describe_counter!(
        CALLS,
        "Calls to an expert node by outcome (ok, refused, deadline, malformed, cancelled)."
    );
    describe_histogram!(
        CALL_TIME,
        Unit::Seconds,
        "From handing a call to an expert node's connection to its answer."
    );
    describe_counter!(
        BYTES,
        Unit::Bytes,
        "Bytes of activations and rows exchanged with an expert node, by direction (sent, received)."
    );
}

/// How a call to a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Ok,
    Refused,
    Deadline,
    Malformed,
    /// The caller no longer wanted it.
    Cancelled,
}

impl Outcome {
    const ALL: [Outcome; 5] = [
        Outcome::Ok,
        Outcome::Refused,
        Outcome::Deadline,
        Outcome::Malformed,
        Outcome::Cancelled,
    ];

    fn name(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Refused => "refused",
            Outcome::Deadline => "deadline",
            Outcome::Malformed => "malformed",
            Outcome::Cancelled => "cancelled",
        }
    }
}

/// Handles of one node's series, looked up once. The process's recorder must be installed before.
pub(super) struct NodeMetrics {
    calls: [Counter; Outcome::ALL.len()],
    seconds: Histogram,
    sent: Counter,
    received: Counter,
}

impl std::fmt::Debug for NodeMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeMetrics")
    }
}

impl NodeMetrics {
    pub(super) fn new(node: &str) -> Self {
        let bytes = |direction: &'static str| counter!(BYTES, "node" => node.to_owned(), "direction" => direction);
        NodeMetrics {
            calls: Outcome::ALL.map(|outcome| {
                let (node, outcome) = (node.to_owned(), outcome.name());
                counter!(CALLS, "node" => node, "outcome" => outcome)
            }),
            seconds: histogram!(CALL_TIME, "node" => node.to_owned()),
            sent: bytes("sent"),
            received: bytes("received"),
        }
    }

    pub(super) fn count(&self, outcome: Outcome) {
        self.calls[outcome as usize].increment(1);
    }

    /// Counts an answered call.
    pub(super) fn answered(&self, after: Duration) {
        self.count(Outcome::Ok);
        self.seconds.record(after.as_secs_f64());
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.sent.increment(bytes as u64);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received.increment(bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics_exporter_prometheus::PrometheusBuilder;

    #[test]
    fn series_have_the_documented_names_and_labels() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            let node = NodeMetrics::new("a:1");
            node.answered(Duration::from_millis(2));
            node.count(Outcome::Deadline);
            node.sent(10);
            node.received(20);
        });
        let text = recorder.handle().render();
        for line in [
            "ds4_node_calls_total{node=\"a:1\",outcome=\"ok\"} 1",
            "ds4_node_calls_total{node=\"a:1\",outcome=\"deadline\"} 1",
            "ds4_node_bytes_total{node=\"a:1\",direction=\"sent\"} 10",
            "ds4_node_bytes_total{node=\"a:1\",direction=\"received\"} 20",
            "ds4_node_call_seconds_count{node=\"a:1\"} 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
