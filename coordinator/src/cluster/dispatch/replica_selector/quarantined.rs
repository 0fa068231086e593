//! Nodes that are not asked because their numbers were wrong.

use std::sync::Arc;
use std::time::Instant;

use ds4_common::random::SplitMix64;

use super::ReplicaSelector;
use crate::cluster::dispatch::quarantine::{Answered, ReturnTest};
use crate::cluster::health_state::HealthState;
use crate::cluster::transport::{LiveNode, NodeId};

impl ReplicaSelector {
    /// A call or its rows were damaged. Returns whether the node is not relied on for that from
    /// here on.
    pub(in crate::cluster::dispatch) fn corrupt(&mut self, id: NodeId, now: Instant) -> bool {
        let often = self.health(id).is_some_and(|health| health.corrupt());
        often && self.demote(id, HealthState::Unresponsive, now)
    }

    /// A healthy node that is not being probed, drawn at random; it counts as being probed from here
    /// on.
    pub(in crate::cluster::dispatch) fn idle_node(
        &mut self,
        draw: &mut SplitMix64,
    ) -> Option<LiveNode> {
        let at = draw.below(self.view.nodes.len().max(1));
        let health = self.health.get_mut(at)?;
        health.begin_check().then(|| self.view.nodes[at].clone())
    }

    /// Begins a node's quarantine, unless it is in one. Returns its end.
    pub(in crate::cluster::dispatch) fn quarantine(
        &mut self,
        node: &LiveNode,
        test: Option<Arc<ReturnTest>>,
        now: Instant,
    ) -> Option<Instant> {
        if self.quarantines.until(node).is_some() {
            return None;
        }
        let until = self.quarantines.begin(node, test, now);
        for (live, health) in self.view.nodes.iter().zip(&mut self.health) {
            if live.name == node.name {
                health.quarantine(until);
            }
        }
        self.forget_plans();
        Some(until)
    }

    /// What a node in quarantine has to compute now.
    pub(in crate::cluster::dispatch) fn return_test(
        &self,
        node: &LiveNode,
    ) -> Option<Arc<ReturnTest>> {
        self.quarantines.until(node)?;
        self.quarantines.test(node)
    }

    /// A node in quarantine has computed its test.
    pub(in crate::cluster::dispatch) fn tested(
        &mut self,
        node: &LiveNode,
        right: bool,
        now: Instant,
    ) {
        let answered = self.quarantines.answered(node, right, now);
        if let Some(health) = self.health(node.id) {
            match answered {
                Answered::Returns => health.release(now),
                Answered::Again => {}
                Answered::Wrong(until) => health.quarantine(until),
            }
        }
        match answered {
            Answered::Returns => {
                tracing::info!(node = %node.name, "an expert node returns from quarantine");
                self.forget_plans();
            }
            Answered::Again => {}
            Answered::Wrong(until) => tracing::warn!(
                node = %node.name,
                seconds = until.saturating_duration_since(now).as_secs_f64(),
                "an expert node still computes wrong numbers; its quarantine is longer"
            ),
        }
    }
}
