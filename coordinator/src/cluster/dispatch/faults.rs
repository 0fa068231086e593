//! Wrong numbers: noticed, blamed on a node by name.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Dispatcher;
use super::quarantine::ReturnTest;
use crate::cluster::node_metrics::{NumberFault, fault};
use crate::cluster::transport::{CallError, Corruption, LiveNode};

impl Dispatcher {
    /// Counts and logs a call of `layer` that failed because numbers were wrong. Returns whether
    /// that is what `error` says.
    pub(super) fn note_wrong_numbers(
        &self,
        node: &LiveNode,
        layer: usize,
        error: &CallError,
        now: Instant,
    ) -> bool {
        let (kind, direction) = match error {
            CallError::Corrupt(Corruption::Call) => (NumberFault::Checksum, "to the node"),
            CallError::Corrupt(Corruption::Rows) => (NumberFault::Checksum, "from the node"),
            CallError::NotFinite(_) => (NumberFault::NotFinite, "computed by the node"),
            _ => return false,
        };
        fault(&node.name, kind);
        if let Some(suppressed) = self.log_throttles.wrong_numbers.pass(now) {
            tracing::warn!(
                node = %node.name, layer, direction, reason = %error, suppressed,
                "the numbers of an expert node's call are wrong; they are computed again"
            );
        }
        let unreliable = kind == NumberFault::Checksum && self.selector().corrupt(node.id, now);
        if unreliable {
            tracing::warn!(
                node = %node.name,
                "messages to and from an expert node are damaged again and again; other replicas \
                 do its work"
            );
        }
        true
    }

    /// Asks a node nothing any more until it has shown that its numbers are right again.
    pub(super) fn quarantine(
        &self,
        node: &LiveNode,
        reason: NumberFault,
        test: Option<Arc<ReturnTest>>,
        now: Instant,
    ) {
        let Some(until) = self.selector().quarantine(node, test, now) else {
            // It is in quarantine for another call.
            return;
        };
        if reason != NumberFault::NotFinite {
            // Infinity and NaN are counted where they are seen.
            fault(&node.name, reason);
        }
        self.quarantined.fetch_add(1, Ordering::Relaxed);
        let seconds = until.saturating_duration_since(now).as_secs_f64();
        tracing::error!(
            node = %node.name, reason = reason.name(), seconds,
            "an expert node is in quarantine; other replicas do its work, and the layer is computed \
             anew"
        );
    }

    /// Number of quarantines that have begun.
    pub(super) fn quarantines_begun(&self) -> u64 {
        self.quarantined.load(Ordering::Relaxed)
    }
}
