//! Metrics of connections: how many there are, and why the server ended them.

use metrics::{counter, describe_counter, describe_gauge, gauge};

use super::connection_state::PlaceKind;

const CONNECTIONS: &str = "ds4_http_connections";
const ENDED: &str = "ds4_http_connections_ended_total";

/// Registers the descriptions of the metrics, and the counters at zero.
pub(super) fn describe() {
    describe_gauge!(
        CONNECTIONS,
        "Open HTTP connections, by place (api, or probe for the reserve of health and metrics)."
    );
    describe_counter!(
        ENDED,
        "HTTP connections that the server ended, by reason (evicted for a newcomer, stalled while \
         writing, gone without a word, head_timeout, malformed, refused for lack of a place)."
    );
    for kind in [PlaceKind::Api, PlaceKind::Probe] {
        connections(0, kind);
    }
    for reason in EndReason::ALL {
        counter!(ENDED, "reason" => reason.label()).absolute(0);
    }
}

/// Why the server ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndReason {
    /// It had no request, and a newcomer needed its place.
    Evicted,
    /// The client took no bytes for too long.
    Stalled,
    /// The client is gone.
    Gone,
    /// The head of a request did not arrive in time.
    HeadTimeout,
    /// What arrived is no HTTP request.
    Malformed,
    /// There was no place for its request.
    Refused,
}

impl EndReason {
    const ALL: [EndReason; 6] = [
        EndReason::Evicted,
        EndReason::Stalled,
        EndReason::Gone,
        EndReason::HeadTimeout,
        EndReason::Malformed,
        EndReason::Refused,
    ];

    /// The value of the label, also for the log.
    pub(super) fn label(self) -> &'static str {
        match self {
            EndReason::Evicted => "evicted",
            EndReason::Stalled => "stalled",
            EndReason::Gone => "gone",
            EndReason::HeadTimeout => "head_timeout",
            EndReason::Malformed => "malformed",
            EndReason::Refused => "refused",
        }
    }
}

/// Adds to the number of open connections.
pub(super) fn connections(change: i32, kind: PlaceKind) {
    let place = match kind {
        PlaceKind::Api => "api",
        PlaceKind::Probe => "probe",
    };
    gauge!(CONNECTIONS, "place" => place).increment(f64::from(change));
}

/// Counts a connection that the server ended.
pub(super) fn ended(reason: EndReason) {
    counter!(ENDED, "reason" => reason.label()).increment(1);
}
