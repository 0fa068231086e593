//! Wrong numbers: noticed, blamed on a node by name.

use std::time::Instant;

use super::Dispatcher;
use super::health::HealthState;
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
}

impl super::replica_selector::ReplicaSelector {
    /// A call or its rows were damaged. Returns whether the node is not relied on for that from
    /// here on.
    fn corrupt(&mut self, id: crate::cluster::transport::NodeId, now: Instant) -> bool {
        let often = self.health(id).is_some_and(|health| health.corrupt());
        often && self.demote(id, HealthState::Unresponsive, now)
    }
}
