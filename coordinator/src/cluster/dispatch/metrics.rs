//! Metrics of the dispatcher: hedges, failovers, the local fallback, probes.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::cluster::health_state::HealthState;
use crate::cluster::node_metrics;
use crate::cluster::transport::CallError;

const HEDGES: &str = "ds4_hedges_total";
const FAILOVERS: &str = "ds4_failovers_total";
const FALLBACKS: &str = "ds4_fallback_pieces_total";
const FALLBACK_TIME: &str = "ds4_fallback_seconds";
const STRANDED: &str = "ds4_stranded_pieces_total";
const PROBES: &str = "ds4_probes_total";
const EPOCH: &str = "ds4_layout_epoch";
const AUDITS: &str = "ds4_audits_total";
const QUARANTINED: &str = "ds4_quarantined_nodes";

/// Registers the descriptions of the metrics with the process's recorder.
pub fn describe() {
    describe_counter!(
        HEDGES,
        "Calls sent to a second replica because the first was late, by outcome (won, lost, failed, \
         denied by the budget)."
    );
    describe_counter!(
        FAILOVERS,
        "Calls whose work went to another replica, by reason (lost, busy, draining, expired, \
         refused, malformed, corrupt, not_finite, silent)."
    );
    describe_counter!(
        FALLBACKS,
        "Tile rectangles computed by the local fallback, from the coordinator's own model file."
    );
    describe_histogram!(
        FALLBACK_TIME,
        Unit::Seconds,
        "Time to compute one tile rectangle by the local fallback."
    );
    describe_counter!(
        STRANDED,
        "Times a request waited for a node because no replica of some tiles was available."
    );
    describe_counter!(
        PROBES,
        "Probe calls to slow or unresponsive nodes, by outcome (answered, failed)."
    );
    describe_counter!(
        AUDITS,
        "Calls that were computed a second time and compared bit for bit, by outcome (same, differs, \
         undecided: nobody could say who is right, unanswered: nobody else could compute it)."
    );
    for outcome in AuditOutcome::ALL {
        counter!(AUDITS, "outcome" => outcome.name()).absolute(0);
    }
    describe_gauge!(
        QUARANTINED,
        "Connected expert nodes that are not used because they computed wrong numbers."
    );
    describe_gauge!(
        EPOCH,
        "Version of the cluster's membership; grows whenever a node joins, leaves or changes."
    );
    for outcome in ["won", "lost", "failed", "denied"] {
        counter!(HEDGES, "outcome" => outcome).absolute(0);
    }
    for reason in FAILOVER_REASONS {
        counter!(FAILOVERS, "reason" => reason).absolute(0);
    }
    for outcome in ["answered", "failed"] {
        counter!(PROBES, "outcome" => outcome).absolute(0);
    }
    for name in [FALLBACKS, STRANDED] {
        counter!(name).absolute(0);
    }
    // A histogram without any value.
    let _ = histogram!(FALLBACK_TIME);
}

/// Values of a failover's `reason`.
const FAILOVER_REASONS: [&str; 9] = [
    "lost",
    "busy",
    "draining",
    "expired",
    "refused",
    "malformed",
    "corrupt",
    "not_finite",
    "silent",
];

/// How a hedge ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum HedgeOutcome {
    /// It answered before the late call.
    Won,
    /// The late call answered first.
    Lost,
    /// It ended without rows.
    Failed,
    /// The budget was spent.
    Denied,
}

pub(super) fn hedge(outcome: HedgeOutcome) {
    let outcome = match outcome {
        HedgeOutcome::Won => "won",
        HedgeOutcome::Lost => "lost",
        HedgeOutcome::Failed => "failed",
        HedgeOutcome::Denied => "denied",
    };
    counter!(HEDGES, "outcome" => outcome).increment(1);
}

/// Counts a failover; `None` stands for an unresponsive node.
pub(super) fn failover(error: Option<&CallError>) {
    let reason = match error {
        None => "silent",
        Some(CallError::Lost(_)) => "lost",
        Some(CallError::Busy) => "busy",
        Some(CallError::Draining) => "draining",
        Some(CallError::Expired) => "expired",
        Some(CallError::Refused(_)) => "refused",
        Some(CallError::Malformed(_)) => "malformed",
        Some(CallError::Corrupt(_)) => "corrupt",
        Some(CallError::NotFinite(_)) => "not_finite",
    };
    counter!(FAILOVERS, "reason" => reason).increment(1);
}

pub(super) fn fallback(took: Duration) {
    counter!(FALLBACKS).increment(1);
    histogram!(FALLBACK_TIME).record(took.as_secs_f64());
}

pub(super) fn stranded() {
    counter!(STRANDED).increment(1);
}

pub(super) fn probe(answered: bool) {
    let outcome = if answered { "answered" } else { "failed" };
    counter!(PROBES, "outcome" => outcome).increment(1);
}

/// How an audit ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum AuditOutcome {
    /// Two places computed the same bits at once.
    Same,
    /// Some place computed other bits than the rest.
    Differs,
    /// Every place computed other bits.
    Undecided,
    /// No other place computed it.
    Unanswered,
}

impl AuditOutcome {
    const ALL: [AuditOutcome; 4] = [
        AuditOutcome::Same,
        AuditOutcome::Differs,
        AuditOutcome::Undecided,
        AuditOutcome::Unanswered,
    ];

    fn name(self) -> &'static str {
        match self {
            AuditOutcome::Same => "same",
            AuditOutcome::Differs => "differs",
            AuditOutcome::Undecided => "undecided",
            AuditOutcome::Unanswered => "unanswered",
        }
    }
}

pub(super) fn audit(outcome: AuditOutcome) {
    counter!(AUDITS, "outcome" => outcome.name()).increment(1);
}

/// Sets the health of all connected nodes.
pub(super) fn health<'a>(nodes: impl Iterator<Item = (&'a str, HealthState)>) {
    let mut quarantined = 0;
    for (node, state) in nodes {
        quarantined += u32::from(state == HealthState::Quarantined);
        node_metrics::health(node, state);
    }
    gauge!(QUARANTINED).set(f64::from(quarantined));
}

pub(super) fn epoch(epoch: u64) {
    gauge!(EPOCH).set(epoch as f64);
}
