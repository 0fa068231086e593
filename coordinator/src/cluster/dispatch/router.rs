//! Which node computes what: decided anew for every layer call from the nodes there are and what
//! is known about them, and remembered as long as neither changes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_common::expert::MoeShape;
use ds4_common::tiles::{TileRect, TileSet};

use super::deadline::LatenessLimits;
use super::health::{FULL_WEIGHT, Health, Standing};
use crate::cluster::assignment::{self, Holder, parts, share_out};
use crate::cluster::combine::Cover;
use crate::cluster::fabric::{NodeId, View, ViewNode};
use crate::engine::ExpertError;

/// Time between two looks at the nodes' speeds.
const WEIGH_INTERVAL: Duration = Duration::from_millis(500);

/// Answers before a node's speed counts.
const FEW_ANSWERS: u64 = 16;

/// A node this many times slower than the fastest is used only where it must be.
const FAR_SLOWER: f64 = 12.0;

/// Where a part of a layer is computed.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Node(ViewNode),
    /// In this process, from its own file.
    Own,
    /// Nobody can.
    Nobody,
}

/// Who may take work that has to go elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Nodes in good standing.
    Nodes,
    /// Anybody.
    All,
}

/// One layer's work, shared out.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) shares: Vec<(Place, Arc<TileSet>)>,
    /// In the order of the shares.
    pub(super) cover: Cover,
    /// No part of a share that goes elsewhere has more maximal subtrees.
    pub(super) most_subtrees: usize,
}

/// Decisions and what they rest on.
#[derive(Debug)]
pub(super) struct Router {
    shape: MoeShape,
    cut: Option<(u32, u32)>,
    limits: LatenessLimits,
    /// What this process holds: everything, or nothing.
    own: Option<TileSet>,
    view: Arc<View>,
    /// Of the view's nodes, in their order.
    health: Vec<Health>,
    /// Of each layer: layers in a row of which all nodes hold the same share one.
    class: Vec<usize>,
    /// By class, as far as they were asked for.
    plans: Vec<Option<Arc<Plan>>>,
    next_weighing: Option<Instant>,
}

impl Router {
    pub(super) fn new(
        shape: MoeShape,
        cut: Option<(u32, u32)>,
        limits: LatenessLimits,
        own: bool,
    ) -> Self {
        let mut router = Router {
            shape,
            cut,
            limits,
            own: own.then(|| TileSet::whole(shape.grid)),
            view: Arc::default(),
            health: Vec::new(),
            class: Vec::new(),
            plans: Vec::new(),
            next_weighing: None,
        };
        router.classify();
        router
    }

    pub(super) fn epoch(&self) -> u64 {
        self.view.epoch
    }

    /// Takes note of who is there now. What is known about connections that stay is kept.
    pub(super) fn see(&mut self, view: &Arc<View>, now: Instant) {
        if self.view.epoch == view.epoch && self.view.nodes.len() == view.nodes.len() {
            return;
        }
        let kept = |id| self.position(id).map(|at| self.health[at].clone());
        let fresh = |node: &ViewNode| kept(node.id).unwrap_or_else(|| Health::new(now));
        self.health = view.nodes.iter().map(fresh).collect();
        self.view = Arc::clone(view);
        self.classify();
    }

    fn classify(&mut self) {
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

    fn forget_plans(&mut self) {
        self.plans.fill(None);
    }

    fn position(&self, id: NodeId) -> Option<usize> {
        self.view.nodes.iter().position(|node| node.id == id)
    }

    fn health(&mut self, id: NodeId) -> Option<&mut Health> {
        let at = self.position(id)?;
        self.health.get_mut(at)
    }

    /// How to compute a layer now.
    ///
    /// # Errors
    /// There are more parts than one message can name.
    pub(super) fn plan(&mut self, layer: usize, now: Instant) -> Result<Arc<Plan>, ExpertError> {
        self.weigh(now);
        let class = self.class[layer];
        if let Some(plan) = &self.plans[class] {
            return Ok(Arc::clone(plan));
        }
        let plan = Arc::new(self.make(layer)?);
        self.plans[class] = Some(Arc::clone(&plan));
        Ok(plan)
    }

    fn make(&self, layer: usize) -> Result<Plan, ExpertError> {
        let grid = self.shape.grid;
        let holders = self.holders(layer, &[]);
        let shares = share_out(grid, &holders, self.cut)
            .or_else(|_| share_out(grid, &holders, None))
            .map_err(|_| ExpertError::TooLarge)?;
        let mut most_subtrees = shares.most_subtrees;
        let places = (0..holders.len()).map(|holder| self.place(holder));
        let mut sets = Vec::new();
        for (place, rects) in places
            .zip(shares.of)
            .chain([(Place::Nobody, shares.missing)])
            .filter(|(_, rects)| !rects.is_empty())
        {
            // Shares are disjoint and inside the grid; only their number can be wrong.
            let set = TileSet::new(grid, rects).map_err(|_| ExpertError::TooLarge)?;
            most_subtrees = most_subtrees.max(set.subtrees(grid));
            sets.push((place, Arc::new(set)));
        }
        let cover = Cover::new(grid, sets.iter().map(|(_, set)| set.rects()));
        Ok(Plan {
            cover: cover.map_err(|_| ExpertError::TooLarge)?,
            shares: sets,
            most_subtrees,
        })
    }

    /// The nodes of the view and this process, as holders of a layer without those in `banned`.
    fn holders(&self, layer: usize, banned: &[NodeId]) -> Vec<Holder<'_>> {
        let nodes = self.view.nodes.iter().zip(&self.health);
        let own = Holder {
            tiles: self.own.as_ref(),
            tier: 2,
            weight: FULL_WEIGHT,
        };
        nodes
            .map(|(node, health)| Holder {
                tiles: node
                    .held
                    .layer(layer)
                    .filter(|_| !banned.contains(&node.id))
                    .map(AsRef::as_ref),
                tier: match health.standing() {
                    Standing::Good => 0,
                    Standing::Slow => 1,
                    Standing::Silent => 3,
                },
                weight: health.weight(),
            })
            .chain([own])
            .collect()
    }

    /// The place of a holder of [`Router::holders`].
    fn place(&self, holder: usize) -> Place {
        match self.view.nodes.get(holder) {
            Some(node) => Place::Node(node.clone()),
            None => Place::Own,
        }
    }

    /// Who could compute `rects` besides the nodes in `banned`: one place for all of them if there
    /// is one, else the parts and their places. No part has more than `most_subtrees`.
    pub(super) fn elsewhere(
        &self,
        layer: usize,
        rects: &[TileRect],
        banned: &[NodeId],
        most_subtrees: usize,
        reach: Reach,
    ) -> Vec<(Place, Vec<TileRect>)> {
        let grid = self.shape.grid;
        let mut holders = self.holders(layer, banned);
        if reach == Reach::Nodes {
            for holder in holders.iter_mut().filter(|h| h.tier > 0) {
                holder.tiles = None;
            }
        }
        let all = |set: &TileSet| rects.iter().all(|rect| set.holder(*rect).is_some());
        let whole = (0..holders.len())
            .filter(|&i| holders[i].tiles.is_some_and(all))
            .min_by_key(|&i| self.preference(&holders, i));
        // A part may have a better holder than the whole: the tiers come first.
        let cells = parts(grid, &holders, rects);
        let tiers = cells
            .iter()
            .filter_map(|(_, by)| Some(holders[*by.first()?].tier));
        if let Some(whole) = whole
            && Some(holders[whole].tier) <= tiers.min()
        {
            return vec![(self.place(whole), rects.to_vec())];
        }
        let mut found: Vec<(usize, Vec<TileRect>, usize)> = Vec::new();
        for (cell, by) in cells {
            let chosen = by
                .iter()
                .copied()
                .min_by_key(|&i| self.preference(&holders, i))
                .unwrap_or(usize::MAX);
            let trees = cell.subtrees(grid).len();
            let own = self.view.nodes.len();
            // What this process computes is in no message.
            let fits = |sum: usize| sum + trees <= most_subtrees || chosen >= own;
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
        let placed = found.into_iter().map(|(holder, rects, _)| match holder {
            usize::MAX => (Place::Nobody, rects),
            holder => (self.place(holder), rects),
        });
        placed.collect()
    }

    /// Tier, then load, then order.
    fn preference(&self, holders: &[Holder<'_>], holder: usize) -> (u8, u64, usize) {
        let load = self.health.get(holder).map_or(0, Health::load);
        (holders[holder].tier, load, holder)
    }

    /// Looks at the nodes' speeds now and then.
    fn weigh(&mut self, now: Instant) {
        if self.next_weighing.is_some_and(|next| now < next) {
            return;
        }
        self.next_weighing = Some(now + WEIGH_INTERVAL);
        let known: Vec<usize> = (0..self.health.len())
            .filter(|&i| self.health[i].experience().0 >= FEW_ANSWERS)
            .collect();
        // At a cost that all of them have met, or less.
        let Some(products) = known.iter().map(|&i| self.health[i].experience().1).min() else {
            return;
        };
        let seconds = |health: &Health| Some(health.latency().expected(products)?.as_secs_f64());
        let times: Vec<(usize, f64)> = known
            .iter()
            .filter_map(|&i| Some((i, seconds(&self.health[i])?)))
            .collect();
        let fastest = times.iter().map(|(_, t)| *t).fold(f64::INFINITY, f64::min);
        let mut changed = false;
        for (i, time) in times {
            let ratio = time / fastest.max(1e-9);
            // Below the floor nobody is late, and nobody is too slow.
            if ratio > FAR_SLOWER && time > self.limits.floor.as_secs_f64() {
                changed |= self.health[i].demote(Standing::Slow, now);
            }
            changed |= self.health[i].weigh(ratio);
        }
        if changed {
            self.forget_plans();
        }
    }

    /// Time after which an answer of a node is late.
    pub(super) fn late_after(&mut self, id: NodeId, products: u64) -> Duration {
        let limits = self.limits;
        let known = self.position(id).map(|at| &self.health[at]);
        known.map_or(limits.first, |h| h.latency().late_after(products, &limits))
    }

    pub(super) fn sent(&mut self, id: NodeId, products: u64) {
        if let Some(health) = self.health(id) {
            health.sent(products);
        }
    }

    /// A call ended without an answer.
    pub(super) fn ended(&mut self, id: NodeId, products: u64) {
        if let Some(health) = self.health(id) {
            health.ended(products);
        }
    }

    pub(super) fn answered(&mut self, id: NodeId, products: u64, took: Duration, now: Instant) {
        let limits = self.limits;
        let Some(at) = self.position(id) else {
            return;
        };
        let others = self.health.iter().enumerate().filter(|(i, h)| {
            *i != at && h.standing() == Standing::Good && h.experience().0 >= FEW_ANSWERS
        });
        let best = others.filter_map(|(_, h)| h.latency().expected(products));
        let fair = best
            .min()
            .map_or(Duration::MAX, |best| (best * 8).max(limits.floor));
        let health = &mut self.health[at];
        health.ended(products);
        if health.answered(products, took, fair, &limits, now) {
            tracing::info!(
                node = %self.view.nodes[at].name,
                standing = ?self.health[at].standing(),
                "expert node answers again"
            );
            self.forget_plans();
        }
    }

    /// A node did not answer for too long. Returns whether that is news.
    pub(super) fn demote(&mut self, id: NodeId, standing: Standing, now: Instant) -> bool {
        let news = self.health(id).is_some_and(|h| h.demote(standing, now));
        if news {
            self.forget_plans();
        }
        news
    }

    /// The nodes that are to be asked now whether they have recovered.
    pub(super) fn due_probes(&mut self, now: Instant) -> Vec<ViewNode> {
        let nodes = self.view.nodes.iter().zip(&mut self.health);
        let due = nodes.filter_map(|(node, health)| health.probe_due(now).then(|| node.clone()));
        due.collect()
    }

    pub(super) fn not_probed(&mut self, id: NodeId) {
        if let Some(health) = self.health(id) {
            health.not_probed();
        }
    }

    pub(super) fn probed(&mut self, id: NodeId, now: Instant) {
        if let Some(health) = self.health(id) {
            health.probed(now);
        }
    }

    /// Products that each node was asked for and has not answered.
    #[cfg(test)]
    pub(super) fn outstanding(&self) -> Vec<(NodeId, u64)> {
        let nodes = self.view.nodes.iter().zip(&self.health);
        nodes.map(|(node, h)| (node.id, h.outstanding())).collect()
    }

    /// How each node stands.
    pub(super) fn standings(&self) -> Vec<(Arc<str>, Standing)> {
        let nodes = self.view.nodes.iter().zip(&self.health);
        nodes
            .map(|(node, health)| (Arc::clone(&node.name), health.standing()))
            .collect()
    }

    /// Whether a node is away that may return.
    pub(super) fn awaits_nodes(&self) -> bool {
        !self.view.absent.is_empty()
    }

    /// Tiles of a layer that nobody has now, for a person.
    pub(super) fn absent(&self, rects: &[TileRect]) -> (String, Option<(String, String)>) {
        let absent = self.view.absent.first();
        let node = absent.map(|(name, reason)| (name.to_string(), reason.clone()));
        (assignment::list(rects), node)
    }
}

#[cfg(test)]
mod tests;
