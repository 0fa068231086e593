//! What is counted about the way of the work.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::cluster::fabric::CallError;

const HEDGES: &str = "ds4_hedges_total";
const FAILOVERS: &str = "ds4_failovers_total";
const FALLBACKS: &str = "ds4_fallback_pieces_total";
const FALLBACK_TIME: &str = "ds4_fallback_seconds";
const STRANDED: &str = "ds4_stranded_pieces_total";
const PROBES: &str = "ds4_probes_total";
const EPOCH: &str = "ds4_layout_epoch";

/// Registers the descriptions.
pub fn describe() {
    describe_counter!(
        HEDGES,
        "Second calls for late answers by outcome (won, lost, failed, denied by the budget)."
    );
    describe_counter!(
        FAILOVERS,
        "Calls whose work went elsewhere, by reason (lost, busy, draining, expired, refused, \
         malformed, silent)."
    );
    describe_counter!(
        FALLBACKS,
        "Parts of a layer that the coordinator computed from its own file."
    );
    describe_histogram!(
        FALLBACK_TIME,
        Unit::Seconds,
        "Time of one part of a layer computed from the coordinator's own file."
    );
    describe_counter!(
        STRANDED,
        "Times that nobody could compute some tiles and a request waited for a node."
    );
    describe_counter!(
        PROBES,
        "Small calls to nodes that were too slow, by outcome (answered, failed)."
    );
    describe_gauge!(EPOCH, "Grows whenever a node joins, leaves or changes.");
}

/// How a hedge ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hedge {
    Won,
    Lost,
    Failed,
    Denied,
}

pub(super) fn hedge(outcome: Hedge) {
    let outcome = match outcome {
        Hedge::Won => "won",
        Hedge::Lost => "lost",
        Hedge::Failed => "failed",
        Hedge::Denied => "denied",
    };
    counter!(HEDGES, "outcome" => outcome).increment(1);
}

/// `None` is a node that says nothing at all.
pub(super) fn failover(error: Option<&CallError>) {
    let reason = match error {
        None => "silent",
        Some(CallError::Lost(_)) => "lost",
        Some(CallError::Busy) => "busy",
        Some(CallError::Draining) => "draining",
        Some(CallError::Expired) => "expired",
        Some(CallError::Refused(_)) => "refused",
        Some(CallError::Malformed(_)) => "malformed",
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

pub(super) fn epoch(epoch: u64) {
    gauge!(EPOCH).set(epoch as f64);
}

/// Lets a message through now and then.
#[derive(Debug)]
pub(super) struct Throttle {
    pause: Duration,
    state: Mutex<(Option<Instant>, u64)>,
}

impl Throttle {
    pub(super) fn new(pause: Duration) -> Self {
        Throttle {
            pause,
            state: Mutex::default(),
        }
    }

    /// Whether a message may be shown; how many were held back since the last one.
    pub(super) fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, held) = &mut *state;
        if last.is_some_and(|at| now < at + self.pause) {
            *held += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_pass_now_and_then_and_count_what_was_held_back() {
        let throttle = Throttle::new(Duration::from_secs(5));
        let start = Instant::now();
        assert_eq!(throttle.pass(start), Some(0));
        assert_eq!(throttle.pass(start + Duration::from_secs(1)), None);
        assert_eq!(throttle.pass(start + Duration::from_secs(4)), None);
        assert_eq!(throttle.pass(start + Duration::from_secs(6)), Some(2));
    }
}
