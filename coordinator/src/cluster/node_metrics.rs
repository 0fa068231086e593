//! Metrics of each node: calls, bytes, state.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

const CALLS: &str = "ds4_node_calls_total";
const CALL_TIME: &str = "ds4_node_call_seconds";
const BYTES: &str = "ds4_node_bytes_total";
const IN_FLIGHT: &str = "ds4_node_in_flight";
const STATE: &str = "ds4_node_state";
const HELD: &str = "ds4_node_weight_bytes";
const FAULTS: &str = "ds4_node_faults_total";

/// Whether a node accepts work, as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StateLabel {
    Up,
    Draining,
    Absent,
    Refused,
}

impl StateLabel {
    const ALL: [StateLabel; 4] = [
        StateLabel::Up,
        StateLabel::Draining,
        StateLabel::Absent,
        StateLabel::Refused,
    ];

    fn name(self) -> &'static str {
        match self {
            StateLabel::Up => "up",
            StateLabel::Draining => "draining",
            StateLabel::Absent => "absent",
            StateLabel::Refused => "refused",
        }
    }
}

/// The call time's metric name and its bucket bounds in seconds: on a fast network one token's
/// experts take a fraction of a millisecond, and a call may wait for its node for minutes.
pub const CALL_SECONDS: (&str, &[f64]) = (
    CALL_TIME,
    &[
        0.000_1, 0.000_25, 0.000_5, 0.001, 0.001_5, 0.002, 0.003, 0.005, 0.007_5, 0.01, 0.02, 0.04,
        0.08, 0.15, 0.3, 0.6, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    ],
);

/// Registers the descriptions of the metrics with the process's recorder.
pub fn describe() {
    describe_counter!(
        CALLS,
        "Calls to an expert node by outcome (ok, refused, deadline, malformed, corrupt, \
         cancelled, busy, draining, lost)."
    );
    describe_counter!(
        FAULTS,
        "Wrong numbers of an expert node by reason (checksum: changed on the way to it or back, \
         not_finite, audit: another computation differs, known_call)."
    );
    describe_gauge!(IN_FLIGHT, "Unanswered calls to an expert node.");
    describe_gauge!(
        STATE,
        "1 for the current state of an expert node (up, draining, absent, refused), 0 for the \
         others."
    );
    describe_gauge!(
        HELD,
        Unit::Bytes,
        "Bytes of expert weights held, as reported by the node."
    );
    describe_histogram!(
        CALL_TIME,
        Unit::Seconds,
        "Time from sending a call to an expert node until its reply."
    );
    describe_counter!(
        BYTES,
        Unit::Bytes,
        "Bytes of activations and rows exchanged with an expert node, by direction (sent, \
         received)."
    );
}

/// How a call to a node ended, as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallOutcome {
    Ok,
    Refused,
    Deadline,
    Malformed,
    /// The node received something else.
    Corrupt,
    /// The caller withdrew it.
    Cancelled,
    Busy,
    Draining,
    /// The connection ended.
    Lost,
}

impl CallOutcome {
    const ALL: [CallOutcome; 9] = [
        CallOutcome::Ok,
        CallOutcome::Refused,
        CallOutcome::Deadline,
        CallOutcome::Malformed,
        CallOutcome::Corrupt,
        CallOutcome::Cancelled,
        CallOutcome::Busy,
        CallOutcome::Draining,
        CallOutcome::Lost,
    ];

    fn name(self) -> &'static str {
        match self {
            CallOutcome::Ok => "ok",
            CallOutcome::Refused => "refused",
            CallOutcome::Deadline => "deadline",
            CallOutcome::Malformed => "malformed",
            CallOutcome::Corrupt => "corrupt",
            CallOutcome::Cancelled => "cancelled",
            CallOutcome::Busy => "busy",
            CallOutcome::Draining => "draining",
            CallOutcome::Lost => "lost",
        }
    }
}

/// What was wrong with a node's numbers, as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NumberFault {
    Checksum,
    NotFinite,
    Audit,
    KnownCall,
}

impl NumberFault {
    pub(super) fn name(self) -> &'static str {
        match self {
            NumberFault::Checksum => "checksum",
            NumberFault::NotFinite => "not_finite",
            NumberFault::Audit => "audit",
            NumberFault::KnownCall => "known_call",
        }
    }
}

/// Counts wrong numbers of the node with this address.
pub(super) fn fault(node: &str, fault: NumberFault) {
    counter!(FAULTS, "node" => node.to_owned(), "reason" => fault.name()).increment(1);
}

/// Handles of one node's metrics, looked up once. The process's recorder must be installed before.
pub(super) struct NodeMetrics {
    calls: [Counter; CallOutcome::ALL.len()],
    seconds: Histogram,
    sent: Counter,
    received: Counter,
    in_flight: Gauge,
    states: [Gauge; StateLabel::ALL.len()],
    held: Gauge,
}

impl std::fmt::Debug for NodeMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeMetrics")
    }
}

impl NodeMetrics {
    /// `node` is the address, the value of the label `node`.
    pub(super) fn new(node: &str) -> Self {
        let bytes = |direction: &'static str| counter!(BYTES, "node" => node.to_owned(), "direction" => direction);
        NodeMetrics {
            calls: CallOutcome::ALL.map(|outcome| {
                let (node, outcome) = (node.to_owned(), outcome.name());
                counter!(CALLS, "node" => node, "outcome" => outcome)
            }),
            seconds: histogram!(CALL_TIME, "node" => node.to_owned()),
            sent: bytes("sent"),
            received: bytes("received"),
            in_flight: gauge!(IN_FLIGHT, "node" => node.to_owned()),
            states: StateLabel::ALL
                .map(|state| gauge!(STATE, "node" => node.to_owned(), "state" => state.name())),
            held: gauge!(HELD, "node" => node.to_owned()),
        }
    }

    /// Sets the number of unanswered calls.
    pub(super) fn in_flight(&self, calls: usize) {
        self.in_flight.set(calls as f64);
    }

    /// Sets the state, and the bytes of weights held if they are known.
    pub(super) fn state(&self, state: StateLabel, held: Option<u64>) {
        for (label, gauge) in StateLabel::ALL.iter().zip(&self.states) {
            gauge.set(f64::from(u8::from(*label == state)));
        }
        if let Some(held) = held {
            self.held.set(held as f64);
        }
    }

    /// Counts a call that ended without rows.
    pub(super) fn count(&self, outcome: CallOutcome) {
        self.calls[outcome as usize].increment(1);
    }

    /// Counts an answered call and records its time.
    pub(super) fn answered(&self, after: Duration) {
        self.count(CallOutcome::Ok);
        self.seconds.record(after.as_secs_f64());
    }

    /// Counts bytes of activations and routes.
    pub(super) fn sent(&self, bytes: usize) {
        self.sent.increment(bytes as u64);
    }

    /// Counts bytes of rows.
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
            node.count(CallOutcome::Deadline);
            node.sent(10);
            node.received(20);
            node.in_flight(3);
            node.state(StateLabel::Draining, Some(77));
        });
        let text = recorder.handle().render();
        for line in [
            "ds4_node_calls_total{node=\"a:1\",outcome=\"ok\"} 1",
            "ds4_node_calls_total{node=\"a:1\",outcome=\"deadline\"} 1",
            "ds4_node_bytes_total{node=\"a:1\",direction=\"sent\"} 10",
            "ds4_node_bytes_total{node=\"a:1\",direction=\"received\"} 20",
            "ds4_node_call_seconds_count{node=\"a:1\"} 1",
            "ds4_node_in_flight{node=\"a:1\"} 3",
            "ds4_node_state{node=\"a:1\",state=\"draining\"} 1",
            "ds4_node_state{node=\"a:1\",state=\"up\"} 0",
            "ds4_node_weight_bytes{node=\"a:1\"} 77",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
