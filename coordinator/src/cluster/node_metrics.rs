//! Metrics of each node: calls, bytes, state, certificate.
//!
//! Nodes come and go, and their series with them. The process's recorder keeps a series for as long
//! as it lives, so these are kept here and written behind its own ([`render`]).

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::health_state::HealthState;

const CALLS: &str = "ds4_node_calls_total";
const CALL_TIME: &str = "ds4_node_call_seconds";
const BYTES: &str = "ds4_node_bytes_total";
const IN_FLIGHT: &str = "ds4_node_in_flight";
const STATE: &str = "ds4_node_state";
const HELD: &str = "ds4_node_weight_bytes";
const FAULTS: &str = "ds4_node_faults_total";
const HEALTH: &str = "ds4_node_health";
const CERTIFICATE: &str = "ds4_node_certificate_expiry_timestamp_seconds";
const CERTIFICATE_FAULTS: &str = "ds4_node_certificate_faults_total";

/// Bounds of the buckets of the call time, in seconds: on a fast network one token's experts take a
/// fraction of a millisecond, and a call may wait for its node for minutes.
const CALL_SECONDS: [f64; 23] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.001_5, 0.002, 0.003, 0.005, 0.007_5, 0.01, 0.02, 0.04,
    0.08, 0.15, 0.3, 0.6, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// Whether a node accepts work, as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StateLabel {
    Up,
    Draining,
    OutOfService,
    Absent,
    Refused,
    /// Another address of a node that is used under its first.
    Alias,
}

impl StateLabel {
    const ALL: [StateLabel; 6] = [
        StateLabel::Up,
        StateLabel::Draining,
        StateLabel::OutOfService,
        StateLabel::Absent,
        StateLabel::Refused,
        StateLabel::Alias,
    ];

    fn name(self) -> &'static str {
        match self {
            StateLabel::Up => "up",
            StateLabel::Draining => "draining",
            StateLabel::OutOfService => "out_of_service",
            StateLabel::Absent => "absent",
            StateLabel::Refused => "refused",
            StateLabel::Alias => "alias",
        }
    }
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
    const ALL: [NumberFault; 4] = [
        NumberFault::Checksum,
        NumberFault::NotFinite,
        NumberFault::Audit,
        NumberFault::KnownCall,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            NumberFault::Checksum => "checksum",
            NumberFault::NotFinite => "not_finite",
            NumberFault::Audit => "audit",
            NumberFault::KnownCall => "known_call",
        }
    }
}

/// Counts wrong numbers of the node with this address, if it has not left.
pub(super) fn fault(node: &str, fault: NumberFault) {
    for known in nodes().iter().filter(|known| known.node == node) {
        known.faults[fault as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Sets how far the node with this address is relied on, if it has not left.
pub(super) fn health(node: &str, health: HealthState) {
    for known in nodes().iter().filter(|known| known.node == node) {
        known.health.store(health as u64, Ordering::Relaxed);
    }
}

/// The health of a node that is not connected.
const NO_HEALTH: u64 = u64::MAX;

/// Figures of one node. Those that only tell how far something has come are counters; they begin at
/// zero when the node joins.
#[derive(Debug)]
pub(super) struct NodeMetrics {
    node: String,
    /// Set once the node has left.
    gone: AtomicBool,
    calls: [AtomicU64; CallOutcome::ALL.len()],
    faults: [AtomicU64; NumberFault::ALL.len()],
    /// Calls by the first bucket that they fit in, and those that fit in none.
    seconds: [AtomicU64; CALL_SECONDS.len() + 1],
    nanoseconds: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    in_flight: AtomicU64,
    /// Index in [`StateLabel::ALL`].
    state: AtomicU64,
    /// A [`HealthState`] as a number, or [`NO_HEALTH`].
    health: AtomicU64,
    held: AtomicU64,
    /// Last second of the certificate's validity, since 1970; 0 if none was shown.
    certificate: AtomicU64,
    certificate_faults: AtomicU64,
}

/// The nodes whose metrics [`render`] writes.
static NODES: Mutex<Vec<Weak<NodeMetrics>>> = Mutex::new(Vec::new());

/// Nodes at the moment, by address. Those that have left are dropped.
fn nodes() -> Vec<Arc<NodeMetrics>> {
    // The list is whole between any two operations on it.
    let mut all = NODES.lock().unwrap_or_else(PoisonError::into_inner);
    let present = |node: &Arc<NodeMetrics>| !node.gone.load(Ordering::Relaxed);
    let mut nodes: Vec<_> = all
        .iter()
        .filter_map(Weak::upgrade)
        .filter(present)
        .collect();
    all.retain(|node| node.upgrade().is_some_and(|node| present(&node)));
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    nodes
}

/// Writes the metrics of all nodes in Prometheus's text format.
pub fn render(out: &mut String) {
    render_nodes(&nodes(), out);
}

impl NodeMetrics {
    /// Metrics of the node at the address `node`, the value of the label `node`, which are not
    /// rendered.
    pub(super) fn new(node: &str) -> Self {
        NodeMetrics {
            node: node.to_owned(),
            gone: AtomicBool::new(false),
            calls: Default::default(),
            faults: Default::default(),
            seconds: Default::default(),
            nanoseconds: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            state: AtomicU64::new(StateLabel::Absent as u64),
            health: AtomicU64::new(NO_HEALTH),
            held: AtomicU64::new(0),
            certificate: AtomicU64::new(0),
            certificate_faults: AtomicU64::new(0),
        }
    }

    /// As [`Self::new`]; they are rendered until [`Self::leave`], or until they are dropped.
    pub(super) fn registered(node: &str) -> Arc<Self> {
        let metrics = Arc::new(Self::new(node));
        let mut all = NODES.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|node| node.strong_count() > 0);
        all.push(Arc::downgrade(&metrics));
        metrics
    }

    /// The node has left: its series end.
    pub(super) fn leave(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Sets the number of unanswered calls.
    pub(super) fn in_flight(&self, calls: usize) {
        self.in_flight.store(calls as u64, Ordering::Relaxed);
    }

    /// Sets the state, and the bytes of weights held if they are known.
    pub(super) fn state(&self, state: StateLabel, held: Option<u64>) {
        self.state.store(state as u64, Ordering::Relaxed);
        if state != StateLabel::Up {
            self.health.store(NO_HEALTH, Ordering::Relaxed);
        }
        if let Some(held) = held {
            self.held.store(held, Ordering::Relaxed);
        }
    }

    /// Sets the end of the certificate that the node showed, in seconds since 1970.
    pub(super) fn certificate(&self, not_after: u64) {
        self.certificate.store(not_after, Ordering::Relaxed);
    }

    /// Counts a connection that failed because of a certificate.
    pub(super) fn certificate_fault(&self) {
        self.certificate_faults.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a call that ended without rows.
    pub(super) fn count(&self, outcome: CallOutcome) {
        self.calls[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an answered call and records its time.
    pub(super) fn answered(&self, after: Duration) {
        self.count(CallOutcome::Ok);
        let seconds = after.as_secs_f64();
        let bucket = CALL_SECONDS.partition_point(|bound| *bound < seconds);
        self.seconds[bucket].fetch_add(1, Ordering::Relaxed);
        // 584 years fit.
        let nanoseconds = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Counts bytes of activations and routes.
    pub(super) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts bytes of rows.
    pub(super) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Writes one metric: its head, then the samples that `of` gives for each node, each with labels
/// behind the node's.
fn family(
    out: &mut String,
    nodes: &[Arc<NodeMetrics>],
    (name, kind, help): (&str, &str, &str),
    of: impl Fn(&NodeMetrics, &mut dyn FnMut(&str, &str, f64)),
) {
    let mut samples = String::new();
    for node in nodes {
        let mut sample = |suffix: &str, labels: &str, value: f64| {
            let node = &node.node;
            // Writing to a String cannot fail. Addresses need no escapes.
            let _ = writeln!(samples, "{name}{suffix}{{node=\"{node}\"{labels}}} {value}");
        };
        of(node, &mut sample);
    }
    if !samples.is_empty() {
        let _ = write!(
            out,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}\n"
        );
    }
}

fn load(figure: &AtomicU64) -> f64 {
    figure.load(Ordering::Relaxed) as f64
}

fn render_nodes(nodes: &[Arc<NodeMetrics>], out: &mut String) {
    let help = "Calls to an expert node by outcome (ok, refused, deadline, malformed, corrupt, \
                cancelled, busy, draining, lost).";
    family(out, nodes, (CALLS, "counter", help), |node, sample| {
        for (outcome, count) in CallOutcome::ALL.iter().zip(&node.calls) {
            sample("", &format!(",outcome=\"{}\"", outcome.name()), load(count));
        }
    });
    let help = "Wrong numbers of an expert node by reason (checksum: changed on the way to it or \
                back, not_finite, audit: another computation differs, known_call).";
    family(out, nodes, (FAULTS, "counter", help), |node, sample| {
        for (fault, count) in NumberFault::ALL.iter().zip(&node.faults) {
            sample("", &format!(",reason=\"{}\"", fault.name()), load(count));
        }
    });
    let help = "1 for how far the dispatcher relies on a connected expert node (healthy, slow, \
                unresponsive, quarantined), 0 for the others.";
    family(out, nodes, (HEALTH, "gauge", help), |node, sample| {
        let health = node.health.load(Ordering::Relaxed);
        for state in HealthState::ALL.iter().filter(|_| health != NO_HEALTH) {
            let label = state.label();
            let is = f64::from(u8::from(*state as u64 == health));
            sample("", &format!(",state=\"{label}\""), is);
        }
    });
    let help = "Bytes of activations and rows exchanged with an expert node, by direction (sent, \
                received).";
    family(out, nodes, (BYTES, "counter", help), |node, sample| {
        sample("", ",direction=\"sent\"", load(&node.sent));
        sample("", ",direction=\"received\"", load(&node.received));
    });
    let help = "Unanswered calls to an expert node.";
    family(out, nodes, (IN_FLIGHT, "gauge", help), |node, sample| {
        sample("", "", load(&node.in_flight));
    });
    let help = "1 for the current state of an expert node (up, draining, out_of_service, absent, \
                refused, alias), 0 \
                for the others.";
    family(out, nodes, (STATE, "gauge", help), |node, sample| {
        let state = node.state.load(Ordering::Relaxed);
        for label in StateLabel::ALL {
            let is = f64::from(u8::from(label as u64 == state));
            sample("", &format!(",state=\"{}\"", label.name()), is);
        }
    });
    let help = "Bytes of expert weights held, as reported by the node.";
    family(out, nodes, (HELD, "gauge", help), |node, sample| {
        sample("", "", load(&node.held));
    });
    let help = "End of the certificate that an expert node showed last, in seconds since 1970.";
    family(out, nodes, (CERTIFICATE, "gauge", help), |node, sample| {
        if node.certificate.load(Ordering::Relaxed) > 0 {
            sample("", "", load(&node.certificate));
        }
    });
    let help = "Connections to an expert node that failed because of a certificate, the node's or \
                this coordinator's.";
    let kind = (CERTIFICATE_FAULTS, "counter", help);
    family(out, nodes, kind, |node, sample| {
        sample("", "", load(&node.certificate_faults));
    });
    let help = "Time from sending a call to an expert node until its reply.";
    family(
        out,
        nodes,
        (CALL_TIME, "histogram", help),
        |node, sample| {
            // Read once, so that the buckets add up.
            let counts = node.seconds.each_ref().map(load);
            let mut below = 0.0;
            for (bound, count) in CALL_SECONDS.iter().zip(&counts) {
                below += count;
                sample("_bucket", &format!(",le=\"{bound}\""), below);
            }
            let all: f64 = counts.iter().sum();
            sample("_bucket", ",le=\"+Inf\"", all);
            sample("_sum", "", load(&node.nanoseconds) / 1e9);
            sample("_count", "", all);
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_have_the_documented_names_and_labels() {
        let node = Arc::new(NodeMetrics::new("a:1"));
        node.answered(Duration::from_millis(2));
        node.answered(Duration::from_secs(1000));
        node.count(CallOutcome::Deadline);
        node.sent(10);
        node.received(20);
        node.in_flight(3);
        node.state(StateLabel::Draining, Some(77));
        node.certificate_fault();
        let mut text = String::new();
        render_nodes(&[Arc::clone(&node)], &mut text);
        for line in [
            "# TYPE ds4_node_calls_total counter",
            "ds4_node_calls_total{node=\"a:1\",outcome=\"ok\"} 2",
            "ds4_node_calls_total{node=\"a:1\",outcome=\"deadline\"} 1",
            "ds4_node_bytes_total{node=\"a:1\",direction=\"sent\"} 10",
            "ds4_node_bytes_total{node=\"a:1\",direction=\"received\"} 20",
            "# TYPE ds4_node_call_seconds histogram",
            "ds4_node_call_seconds_bucket{node=\"a:1\",le=\"0.0015\"} 0",
            "ds4_node_call_seconds_bucket{node=\"a:1\",le=\"0.002\"} 1",
            "ds4_node_call_seconds_bucket{node=\"a:1\",le=\"300\"} 1",
            "ds4_node_call_seconds_bucket{node=\"a:1\",le=\"+Inf\"} 2",
            "ds4_node_call_seconds_sum{node=\"a:1\"} 1000.002",
            "ds4_node_call_seconds_count{node=\"a:1\"} 2",
            "ds4_node_in_flight{node=\"a:1\"} 3",
            "ds4_node_state{node=\"a:1\",state=\"draining\"} 1",
            "ds4_node_state{node=\"a:1\",state=\"up\"} 0",
            "ds4_node_weight_bytes{node=\"a:1\"} 77",
            "ds4_node_certificate_faults_total{node=\"a:1\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(!text.contains(CERTIFICATE), "none was shown");
        node.certificate(1_800_000_000);
        text.clear();
        render_nodes(&[node], &mut text);
        let line = "ds4_node_certificate_expiry_timestamp_seconds{node=\"a:1\"} 1800000000\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn the_series_of_a_node_that_left_are_gone_and_a_return_begins_at_zero() {
        let shown = || {
            let mut text = String::new();
            render(&mut text);
            text.lines()
                .filter(|line| line.contains("gone.test:1"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let first = NodeMetrics::registered("gone.test:1");
        first.sent(5);
        fault("gone.test:1", NumberFault::Audit);
        assert!(
            shown()
                .iter()
                .any(|line| line.ends_with("reason=\"audit\"} 1"))
        );
        assert!(shown().iter().any(|line| line.ends_with("\"sent\"} 5")));
        // The handle may live on in a call that is still open.
        first.leave();
        assert_eq!(shown(), [""; 0]);
        let again = NodeMetrics::registered("gone.test:1");
        assert!(shown().iter().any(|line| line.ends_with("\"sent\"} 0")));
        drop(again);
        assert_eq!(shown(), [""; 0]);
    }
}
