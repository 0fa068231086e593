//! Chooses the replica that computes each tile, from the connected nodes and what is known about
//! them. The choice for a layer is cached until either changes.

mod quarantined;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_common::expert::MoeShape;
use ds4_common::tiles::{TileRect, TileSet};

use super::health::{FULL_WEIGHT, NodeHealth};
use super::latency::LatenessLimits;
use super::metrics;
use super::quarantine::Quarantines;
use crate::cluster::combine::Cover;
use crate::cluster::health_state::HealthState;
use crate::cluster::tile_assignment::{self, ReplicaCandidate, assign_tiles, cells_with_replicas};
use crate::cluster::transport::{ClusterView, LiveNode, NodeId};
use crate::engine::ExpertError;

/// Time between two comparisons of the nodes' speeds.
const WEIGH_INTERVAL: Duration = Duration::from_millis(500);

/// Replies that a node must have sent before its speed counts.
const FEW_REPLIES: u64 = 16;

/// A node this many times slower than the fastest becomes [`HealthState::Slow`].
const FAR_SLOWER: f64 = 12.0;

/// A place that holds a copy of some tiles and can compute them.
#[derive(Clone, Debug)]
pub(super) enum Replica {
    /// A node.
    Node(LiveNode),
    /// The local fallback: this process, from its own model file.
    Local,
}

/// Which replicas are considered for work that the assigned replica does not deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Healthy nodes only.
    HealthyNodes,
    /// Every node and the local fallback.
    AllReplicas,
}

/// Who computes which tiles of a layer.
#[derive(Debug)]
pub(super) struct DispatchPlan {
    /// Disjoint tile sets that cover the grid, each with its replica; `None` where there is none.
    pub(super) shares: Vec<(Option<Replica>, Arc<TileSet>)>,
    /// Adds the rows of the shares, in their order.
    pub(super) cover: Cover,
    /// Upper bound of the maximal subtrees in one call, failover included.
    pub(super) most_subtrees: usize,
}

/// Chooses replicas, and keeps what the choice rests on.
#[derive(Debug)]
pub(super) struct ReplicaSelector {
    shape: MoeShape,
    /// Prescribed expert groups x block strips.
    cut: Option<(u32, u32)>,
    limits: LatenessLimits,
    /// The tiles of the local fallback: all, or `None` without one.
    local: Option<TileSet>,
    view: Arc<ClusterView>,
    /// Health of the view's nodes, in their order.
    health: Vec<NodeHealth>,
    /// Class of each layer: consecutive layers of which every node holds the same tiles share one.
    class: Vec<usize>,
    /// Cached plan of each class.
    plans: Vec<Option<Arc<DispatchPlan>>>,
    next_weighing: Option<Instant>,
    quarantines: Quarantines,
}

impl ReplicaSelector {
    pub(super) fn new(
        shape: MoeShape,
        cut: Option<(u32, u32)>,
        limits: LatenessLimits,
        local_fallback: bool,
        quarantine: Duration,
    ) -> Self {
        let mut selector = ReplicaSelector {
            shape,
            cut,
            limits,
            local: local_fallback.then(|| TileSet::whole(shape.grid)),
            view: Arc::default(),
            health: Vec::new(),
            class: Vec::new(),
            plans: Vec::new(),
            next_weighing: None,
            quarantines: Quarantines::new(quarantine),
        };
        selector.classify_layers();
        selector
    }

    pub(super) fn epoch(&self) -> u64 {
        self.view.epoch
    }

    /// Adopts a snapshot of the cluster. What is known about connections that stay is kept.
    pub(super) fn update_view(&mut self, view: &Arc<ClusterView>, now: Instant) {
        if self.view.epoch == view.epoch && self.view.nodes.len() == view.nodes.len() {
            return;
        }
        let kept = |id| self.position(id).map(|at| self.health[at].clone());
        let fresh = |node: &LiveNode| kept(node.id).unwrap_or_else(|| NodeHealth::new(now));
        self.health = view.nodes.iter().map(fresh).collect();
        self.view = Arc::clone(view);
        self.quarantines.update_view(view);
        for (node, health) in self.view.nodes.iter().zip(&mut self.health) {
            if let Some(until) = self.quarantines.until(node)
                && health.state() != HealthState::Quarantined
            {
                health.quarantine(until);
            }
        }
        self.classify_layers();
        self.publish_health();
    }

    fn classify_layers(&mut self) {
        let nodes = &self.view.nodes;
        let same = |a: usize, b: usize| nodes.iter().all(|n| n.held.layer(a) == n.held.layer(b));
        self.class.clear();
        for layer in 0..self.shape.layers {
            let class = match self.class.last() {
                Some(&class) if same(layer - 1, layer) => class,
                Some(&class) => class + 1,
                None => 0,
            };
            self.class.push(class);
        }
        let classes = self.class.last().map_or(0, |last| last + 1);
        self.plans = vec![None; classes];
    }

    /// Something about the nodes' health has changed.
    fn forget_plans(&mut self) {
        self.plans.fill(None);
        self.publish_health();
    }

    fn publish_health(&self) {
        let names = self.view.nodes.iter().map(|node| &*node.name);
        let states = self.health.iter().map(NodeHealth::state);
        metrics::health(names.zip(states));
    }

    fn position(&self, id: NodeId) -> Option<usize> {
        self.view.nodes.iter().position(|node| node.id == id)
    }

    fn health(&mut self, id: NodeId) -> Option<&mut NodeHealth> {
        let at = self.position(id)?;
        self.health.get_mut(at)
    }

    /// The plan for a layer.
    ///
    /// # Errors
    /// A share has more rectangles than one message can carry.
    pub(super) fn plan(
        &mut self,
        layer: usize,
        now: Instant,
    ) -> Result<Arc<DispatchPlan>, ExpertError> {
        self.compare_speeds(now);
        let class = self.class[layer];
        if let Some(plan) = &self.plans[class] {
            return Ok(Arc::clone(plan));
        }
        let plan = Arc::new(self.make_plan(layer)?);
        self.plans[class] = Some(Arc::clone(&plan));
        Ok(plan)
    }

    fn make_plan(&self, layer: usize) -> Result<DispatchPlan, ExpertError> {
        let grid = self.shape.grid;
        let candidates = self.candidates(layer, &[]);
        let assignment = assign_tiles(grid, &candidates, self.cut)
            .or_else(|_| assign_tiles(grid, &candidates, None))?;
        let mut most_subtrees = assignment.most_subtrees;
        let replicas = (0..candidates.len()).map(|candidate| Some(self.replica(candidate)));
        let mut shares = Vec::new();
        for (replica, rects) in replicas
            .zip(assignment.shares)
            .chain([(None, assignment.missing)])
            .filter(|(_, rects)| !rects.is_empty())
        {
            // Shares are disjoint and inside the grid; only their number can be wrong.
            let set = TileSet::new(grid, rects)?;
            most_subtrees = most_subtrees.max(set.subtrees(grid));
            shares.push((replica, Arc::new(set)));
        }
        let cover = Cover::new(grid, shares.iter().map(|(_, set)| set.rects()));
        Ok(DispatchPlan {
            cover: cover?,
            shares,
            most_subtrees,
        })
    }

    /// The nodes of the view without those in `excluded`, and last the local fallback. Tiers:
    /// healthy nodes, slow nodes, the local fallback, unresponsive nodes.
    fn candidates(&self, layer: usize, excluded: &[NodeId]) -> Vec<ReplicaCandidate<'_>> {
        let nodes = self.view.nodes.iter().zip(&self.health);
        let local = ReplicaCandidate {
            tiles: self.local.as_ref(),
            tier: 2,
            weight: FULL_WEIGHT,
        };
        nodes
            .map(|(node, health)| ReplicaCandidate {
                tiles: node
                    .held
                    .layer(layer)
                    .filter(|_| !excluded.contains(&node.id))
                    .filter(|_| health.state() != HealthState::Quarantined)
                    .map(AsRef::as_ref),
                tier: match health.state() {
                    HealthState::Healthy => 0,
                    HealthState::Slow => 1,
                    HealthState::Unresponsive | HealthState::Quarantined => 3,
                },
                weight: health.weight(),
            })
            .chain([local])
            .collect()
    }

    /// The replica of a candidate, by its index in [`ReplicaSelector::candidates`].
    fn replica(&self, candidate: usize) -> Replica {
        match self.view.nodes.get(candidate) {
            Some(node) => Replica::Node(node.clone()),
            None => Replica::Local,
        }
    }

    /// The best replicas of `rects` outside of the nodes in `excluded`: a single one if it is the
    /// best for all of them, else several with the rectangles of each; `None` goes with those that
    /// have no replica. No node's rectangles have more than `most_subtrees` maximal subtrees.
    pub(super) fn replicas_of(
        &self,
        layer: usize,
        rects: &[TileRect],
        excluded: &[NodeId],
        most_subtrees: usize,
        reach: Reach,
    ) -> Vec<(Option<Replica>, Vec<TileRect>)> {
        let grid = self.shape.grid;
        let mut candidates = self.candidates(layer, excluded);
        if reach == Reach::HealthyNodes {
            for candidate in candidates.iter_mut().filter(|c| c.tier > 0) {
                candidate.tiles = None;
            }
        }
        let holds_all = |set: &TileSet| rects.iter().all(|rect| set.rect_around(*rect).is_some());
        let whole = (0..candidates.len())
            .filter(|&i| candidates[i].tiles.is_some_and(holds_all))
            .min_by_key(|&i| self.preference(&candidates, i));
        // A cell may have a replica of a better tier than any replica of the whole.
        let cells = cells_with_replicas(grid, &candidates, rects);
        let tiers = cells
            .iter()
            .filter_map(|(_, by)| Some(candidates[*by.first()?].tier));
        if let Some(whole) = whole
            && Some(candidates[whole].tier) <= tiers.min()
        {
            return vec![(Some(self.replica(whole)), rects.to_vec())];
        }
        // The candidate, its rectangles, and their number of maximal subtrees.
        let mut found: Vec<(Option<usize>, Vec<TileRect>, usize)> = Vec::new();
        for (cell, by) in cells {
            let chosen = by
                .into_iter()
                .min_by_key(|&i| self.preference(&candidates, i));
            let trees = cell.subtrees(grid).len();
            // Only nodes are sent messages, whose size is bounded.
            let sent = chosen.is_some_and(|i| i < self.view.nodes.len());
            let fits = |sum: usize| sum + trees <= most_subtrees || !sent;
            match found
                .iter_mut()
                .find(|(i, _, sum)| *i == chosen && fits(*sum))
            {
                Some((_, rects, sum)) => {
                    rects.push(cell);
                    *sum += trees;
                }
                None => found.push((chosen, vec![cell], trees)),
            }
        }
        found
            .into_iter()
            .map(|(candidate, rects, _)| (candidate.map(|i| self.replica(i)), rects))
            .collect()
    }

    /// A replica of all of `rects` outside of the nodes in `excluded` that may be expected to answer;
    /// the own file only if it is `wanted`.
    pub(super) fn second_opinion(
        &self,
        layer: usize,
        rects: &[TileRect],
        excluded: &[NodeId],
        wanted: bool,
    ) -> Option<Replica> {
        let candidates = self.candidates(layer, excluded);
        let nodes = self.view.nodes.len();
        let holds_all = |set: &TileSet| rects.iter().all(|rect| set.rect_around(*rect).is_some());
        let usable = |i: &usize| {
            let candidate = &candidates[*i];
            let asked = *i < nodes || wanted;
            asked && candidate.tier < 3 && candidate.tiles.is_some_and(holds_all)
        };
        let best = (0..candidates.len()).filter(usable);
        let best = best.min_by_key(|&i| self.preference(&candidates, i));
        best.map(|candidate| self.replica(candidate))
    }

    /// Orders candidates: by tier, then load, then position.
    fn preference(&self, candidates: &[ReplicaCandidate<'_>], index: usize) -> (u8, u64, usize) {
        let load = self.health.get(index).map_or(0, NodeHealth::load);
        (candidates[index].tier, load, index)
    }

    /// Compares the nodes' speeds every [`WEIGH_INTERVAL`] and adapts their weights.
    fn compare_speeds(&mut self, now: Instant) {
        if self.next_weighing.is_some_and(|next| now < next) {
            return;
        }
        self.next_weighing = Some(now + WEIGH_INTERVAL);
        let known: Vec<usize> = (0..self.health.len())
            .filter(|&i| self.health[i].replies() >= FEW_REPLIES)
            .collect();
        // They are compared at the smallest of their usual call sizes.
        let Some(ops) = known.iter().map(|&i| self.health[i].last_ops()).min() else {
            return;
        };
        let seconds = |health: &NodeHealth| Some(health.latency().expected(ops)?.as_secs_f64());
        let times: Vec<(usize, f64)> = known
            .iter()
            .filter_map(|&i| Some((i, seconds(&self.health[i])?)))
            .collect();
        let fastest = times.iter().map(|(_, t)| *t).fold(f64::INFINITY, f64::min);
        let mut changed = false;
        for (i, time) in times {
            let ratio = time / fastest.max(1e-9);
            // Below the floor no reply is late, so no node is too slow.
            if ratio > FAR_SLOWER && time > self.limits.floor.as_secs_f64() {
                changed |= self.health[i].demote(HealthState::Slow, now);
            }
            changed |= self.health[i].adapt_weight(ratio);
        }
        if changed {
            self.forget_plans();
        }
    }

    /// Time after which a reply to a call of `ops` expert_block_ops is late.
    pub(super) fn late_after(&mut self, id: NodeId, ops: u64) -> Duration {
        let limits = self.limits;
        let known = self.position(id).map(|at| &self.health[at]);
        known.map_or(limits.first, |h| h.latency().late_after(ops, &limits))
    }

    /// A call was sent.
    pub(super) fn sent(&mut self, id: NodeId, ops: u64) {
        if let Some(health) = self.health(id) {
            health.sent(ops);
        }
    }

    /// A call ended without rows.
    pub(super) fn ended(&mut self, id: NodeId, ops: u64) {
        if let Some(health) = self.health(id) {
            health.ended(ops);
        }
    }

    /// A call was answered with rows after `took`.
    pub(super) fn answered(&mut self, id: NodeId, ops: u64, took: Duration, now: Instant) {
        let limits = self.limits;
        let Some(at) = self.position(id) else {
            return;
        };
        let others = self.health.iter().enumerate().filter(|(i, h)| {
            *i != at && h.state() == HealthState::Healthy && h.replies() >= FEW_REPLIES
        });
        let best = others.filter_map(|(_, h)| h.latency().expected(ops));
        let fair = best
            .min()
            .map_or(Duration::MAX, |best| (best * 8).max(limits.floor));
        let health = &mut self.health[at];
        health.ended(ops);
        if health.answered(ops, took, fair, &limits, now) {
            tracing::info!(
                node = %self.view.nodes[at].name,
                health = ?self.health[at].state(),
                "an expert node is answering again"
            );
            self.forget_plans();
        }
    }

    /// Lowers a node's health to `state`. Returns whether that is a change.
    pub(super) fn demote(&mut self, id: NodeId, state: HealthState, now: Instant) -> bool {
        let changed = self.health(id).is_some_and(|h| h.demote(state, now));
        if changed {
            self.forget_plans();
        }
        changed
    }

    /// The nodes that are to be probed now; they count as being probed from here on.
    pub(super) fn due_probes(&mut self, now: Instant) -> Vec<LiveNode> {
        let nodes = self.view.nodes.iter().zip(&mut self.health);
        let quarantines = &self.quarantines;
        let due = nodes.filter_map(|(node, health)| {
            let quarantined = health.state() == HealthState::Quarantined;
            // Only another connection lets a node return that has no test.
            if quarantined && quarantines.test(node).is_none() {
                return None;
            }
            health.probe_due(now).then(|| node.clone())
        });
        due.collect()
    }

    /// The batch held nothing to probe a node with.
    pub(super) fn not_probed(&mut self, id: NodeId) {
        if let Some(health) = self.health(id) {
            health.not_probed();
        }
    }

    /// A probe ended, or could not be sent.
    pub(super) fn probed(&mut self, id: NodeId, now: Instant) {
        if let Some(health) = self.health(id) {
            health.probed(now);
        }
    }

    /// The `expert_block_ops` of each node's unanswered calls.
    #[cfg(test)]
    pub(super) fn outstanding(&self) -> Vec<(NodeId, u64)> {
        let nodes = self.view.nodes.iter().zip(&self.health);
        nodes.map(|(node, h)| (node.id, h.outstanding())).collect()
    }

    /// Name and health state of each node of the view.
    pub(super) fn health_states(&self) -> Vec<(Arc<str>, HealthState)> {
        let nodes = self.view.nodes.iter().zip(&self.health);
        nodes
            .map(|(node, health)| (Arc::clone(&node.name), health.state()))
            .collect()
    }

    /// Whether some node is absent and may return.
    pub(super) fn awaits_nodes(&self) -> bool {
        !self.view.absent.is_empty()
    }

    /// For a message about tiles without a replica: the tiles as text, and the name of an absent
    /// node with the reason.
    pub(super) fn describe_missing(
        &self,
        rects: &[TileRect],
    ) -> (String, Option<(String, String)>) {
        let absent = self.view.absent.first();
        let node = absent.map(|(name, reason)| (name.to_string(), reason.clone()));
        (tile_assignment::list(rects), node)
    }
}

#[cfg(test)]
mod tests;
