//! Routed experts on a cluster.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ds4_common::expert::ExpertBatch;
use ds4_common::tiles::{Grid, Holdings, TileSet};
use ds4_proto::limits::MAX_DEADLINE;
use ds4_proto::security::Security;
use ds4_proto::wire::{EncodedBatch, Shape};

use super::assignment::{AssignmentError, assign};
use super::calls::{Arrival, Calls, Request};
use super::combine::{Cover, RowMap};
use super::membership::{ClusterError, Expectation, Member, gather};
use super::node_metrics::Outcome;
use super::transport::{NodeLink, Target};
use crate::engine::{ExpertBackend, ExpertError, PendingExperts};

/// Longest wait before the caller is asked whether it still wants the answer.
const GIVE_UP_INTERVAL: Duration = Duration::from_millis(20);

/// Which nodes, and how long to wait for them.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// `host:port` or `http://` URLs.
    pub nodes: Vec<String>,
    /// Expert groups x block strips; `None` cuts for the number of nodes.
    pub grid: Option<(u32, u32)>,
    /// Time for all nodes to be there at the start.
    pub patience: Duration,
    /// Time for one layer's experts, lost connections and retries included.
    pub deadline: Duration,
    /// What protects the connections to them.
    pub security: Security,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        ClusterOptions {
            nodes: Vec::new(),
            grid: None,
            patience: Duration::from_secs(60),
            deadline: Duration::from_secs(60),
            security: Security::default(),
        }
    }
}

/// Who computes what of a layer.
#[derive(Debug)]
struct LayerPlan {
    /// Links and what is computed there, in the order of the cover's holders.
    shares: Vec<(usize, Arc<TileSet>)>,
    cover: Cover,
}

/// [`ExpertBackend`] over expert nodes. Its calls never block on a socket: the links' tasks run
/// on the tokio runtime that [`ClusterBackend::connect`] ran on.
#[derive(Debug)]
pub struct ClusterBackend {
    links: Vec<NodeLink>,
    members: Vec<Member>,
    /// By layer; layers that are shared out alike share one.
    layers: Vec<Arc<LayerPlan>>,
    shape: Shape,
    deadline: Duration,
}

impl ClusterBackend {
    /// Finds the nodes, shares the tiles out, and connects.
    ///
    /// # Errors
    /// Names the node that is missing or does not fit, or the tiles that nobody holds.
    pub async fn connect(
        options: &ClusterOptions,
        expected: &Expectation,
    ) -> Result<Self, ClusterError> {
        let start = Instant::now();
        let members = gather(
            &options.nodes,
            expected,
            options.patience,
            &options.security,
        )
        .await?;
        let layers = plan_layers(&members, expected.shape, options.grid)?;
        let mut links = Vec::new();
        for (node, member) in members.iter().enumerate() {
            let tiles = tiles_of(&layers, node, expected.shape)?;
            if tiles.is_empty() {
                tracing::warn!(node = member.address, "expert node is left without tiles");
            } else {
                tracing::info!(node = member.address, %tiles, "expert node");
            }
            let calls = Arc::new(Calls::new(member.address.as_str().into()));
            let target = Target {
                endpoint: member.endpoint.clone(),
                fingerprint: expected.fingerprint,
                shape: expected.shape,
                version: member.info.versions.newest,
                tiles,
            };
            links.push(NodeLink::start(calls, target));
        }
        let left = options.patience.saturating_sub(start.elapsed());
        await_links(&links, left.max(Duration::from_secs(1)), options.patience).await?;
        Ok(ClusterBackend {
            links,
            members,
            layers,
            shape: expected.shape,
            deadline: options.deadline.min(MAX_DEADLINE),
        })
    }

    /// The nodes, those without tiles included, as they described themselves at the start.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The tiles that each node computes.
    pub fn shares(&self) -> impl Iterator<Item = (&str, &Holdings)> {
        self.links
            .iter()
            .map(|link| (link.calls.node().as_ref(), &link.tiles))
    }

    /// The nodes that are not connected now, and why.
    #[must_use]
    pub fn faults(&self) -> Vec<(String, String)> {
        let fault = |link: &NodeLink| Some((link.calls.node().to_string(), link.calls.fault()?));
        self.links.iter().filter_map(fault).collect()
    }
}

/// Shares every layer out; layers of which all nodes hold the same are shared out once.
fn plan_layers(
    members: &[Member],
    shape: Shape,
    cut: Option<(u32, u32)>,
) -> Result<Vec<Arc<LayerPlan>>, ClusterError> {
    let mut plans: Vec<Arc<LayerPlan>> = Vec::with_capacity(shape.layers);
    let mut last: Option<Vec<Option<&TileSet>>> = None;
    for layer in 0..shape.layers {
        let held: Vec<Option<&TileSet>> = members
            .iter()
            .map(|m| m.info.held.layer(layer).map(AsRef::as_ref))
            .collect();
        let plan = match plans.last() {
            Some(plan) if last.as_ref() == Some(&held) => Arc::clone(plan),
            _ => Arc::new(LayerPlan::new(shape.grid, &held, cut, layer)?),
        };
        plans.push(plan);
        last = Some(held);
    }
    Ok(plans)
}

impl LayerPlan {
    fn new(
        grid: Grid,
        held: &[Option<&TileSet>],
        cut: Option<(u32, u32)>,
        layer: usize,
    ) -> Result<Self, ClusterError> {
        let shares = assign(grid, held, cut)
            .map_err(|problem| ClusterError::Assignment { layer, problem })?;
        let mut sets = Vec::new();
        for (node, rects) in shares.into_iter().enumerate() {
            if !rects.is_empty() {
                // Shares are disjoint and inside the grid; only their number can be wrong.
                let set = TileSet::new(grid, rects).map_err(|_| ClusterError::TooLarge)?;
                sets.push((node, Arc::new(set)));
            }
        }
        let cover = Cover::new(grid, sets.iter().map(|(_, set)| set.rects())).map_err(|e| {
            let problem = AssignmentError::from(e);
            ClusterError::Assignment { layer, problem }
        })?;
        Ok(LayerPlan {
            shares: sets,
            cover,
        })
    }
}

/// What one node computes in every layer.
fn tiles_of(
    layers: &[Arc<LayerPlan>],
    node: usize,
    shape: Shape,
) -> Result<Holdings, ClusterError> {
    let share = |plan: &Arc<LayerPlan>| {
        let own = plan.shares.iter().find(|(holder, _)| *holder == node);
        own.map_or_else(Vec::new, |(_, tiles)| tiles.rects().to_vec())
    };
    Holdings::new(shape.grid, layers.iter().map(share).collect())
        .map_err(|_| ClusterError::TooLarge)
}

async fn await_links(
    links: &[NodeLink],
    left: Duration,
    patience: Duration,
) -> Result<(), ClusterError> {
    let all = futures::future::join_all(links.iter().map(NodeLink::connected));
    if tokio::time::timeout(left, all).await.is_ok() {
        return Ok(());
    }
    let missing = links
        .iter()
        .find_map(|link| Some((link, link.calls.fault()?)));
    match missing {
        None => Ok(()),
        Some((link, reason)) => Err(ClusterError::Unreachable {
            node: link.calls.node().to_string(),
            seconds: patience.as_secs(),
            reason,
        }),
    }
}

impl ExpertBackend for ClusterBackend {
    fn begin(&self, batch: Arc<ExpertBatch>) -> Result<Box<dyn PendingExperts + '_>, ExpertError> {
        let shape = self.shape;
        batch.check(shape.layers, shape.grid, shape.hidden, shape.used)?;
        let plan = &self.layers[batch.layer];
        let most = shape.tokens_per_call(plan.cover.most_subtrees(), batch.input.format());
        if most == 0 {
            return Err(ExpertError::TooLarge);
        }
        let parts = batch.tokens.div_ceil(most);
        let (arrivals, inbox) = sync_channel(parts * plan.shares.len());
        let began = Instant::now();
        let mut pending = PendingCluster {
            backend: self,
            plan,
            batch,
            parts: Vec::with_capacity(parts),
            calls: Vec::with_capacity(parts * plan.shares.len()),
            inbox,
            began,
            deadline: began + self.deadline,
            given_up: Outcome::Cancelled,
        };
        for part in 0..parts {
            let tokens = pending.batch.tokens;
            pending.send(
                tokens * part / parts..tokens * (part + 1) / parts,
                &arrivals,
            )?;
        }
        Ok(Box::new(pending))
    }
}

/// Some tokens of a batch: one call for each node that has rows for them.
#[derive(Debug)]
struct Part {
    tokens: Range<usize>,
    map: RowMap,
    /// In the order of the cover's holders; empty where there are no rows.
    replies: Vec<Bytes>,
    missing: usize,
}

/// A call that was handed to a link.
#[derive(Debug)]
struct OpenCall {
    link: usize,
    /// Place among the cover's holders.
    holder: usize,
    part: usize,
    /// `None` once it has been answered.
    id: Option<u64>,
}

/// A batch on its way. Dropping it cancels what is not answered.
#[derive(Debug)]
struct PendingCluster<'a> {
    backend: &'a ClusterBackend,
    plan: &'a LayerPlan,
    batch: Arc<ExpertBatch>,
    parts: Vec<Part>,
    /// By the slot that their arrivals carry.
    calls: Vec<OpenCall>,
    inbox: Receiver<Arrival>,
    began: Instant,
    deadline: Instant,
    /// What calls count as that are not answered when this is dropped.
    given_up: Outcome,
}

impl PendingCluster<'_> {
    /// Encodes some tokens once and hands them to every node that has rows for them.
    fn send(
        &mut self,
        tokens: Range<usize>,
        arrivals: &SyncSender<Arrival>,
    ) -> Result<(), ExpertError> {
        let backend = self.backend;
        let encoded = EncodedBatch::new(&self.batch, tokens.clone());
        let map = self.plan.cover.rows(&self.batch, tokens.clone());
        let part = self.parts.len();
        let mut missing = 0;
        for (holder, &rows) in map.rows.iter().enumerate().filter(|(_, rows)| **rows > 0) {
            let (link, tiles) = &self.plan.shares[holder];
            let id = backend.links[*link].calls.submit(Request {
                encoded: encoded.clone(),
                tiles: Arc::clone(tiles),
                layer: self.batch.layer,
                expected: rows * backend.shape.row_bytes(),
                began: self.began,
                deadline: self.deadline,
                slot: self.calls.len(),
                arrivals: arrivals.clone(),
            })?;
            self.calls.push(OpenCall {
                link: *link,
                holder,
                part,
                id: Some(id),
            });
            missing += 1;
        }
        self.parts.push(Part {
            tokens,
            map,
            replies: vec![Bytes::new(); self.plan.shares.len()],
            missing,
        });
        Ok(())
    }

    /// The error for a deadline that passed: the first node that has not answered.
    fn late(&mut self) -> ExpertError {
        self.given_up = Outcome::Deadline;
        let Some(open) = self.calls.iter().find(|call| call.id.is_some()) else {
            return ExpertError::Closed;
        };
        let calls = &self.backend.links[open.link].calls;
        let node = calls.node().to_string();
        match calls.fault() {
            Some(reason) => ExpertError::Unreachable { node, reason },
            None => ExpertError::Deadline {
                node,
                layer: self.batch.layer,
                deadline_ms: self.backend.deadline.as_millis() as u64,
            },
        }
    }
}

impl PendingExperts for PendingCluster<'_> {
    fn finish(
        mut self: Box<Self>,
        give_up: &dyn Fn() -> bool,
        out: &mut [f32],
    ) -> Result<(), ExpertError> {
        let hidden = self.backend.shape.hidden;
        let mut open = self.calls.len();
        while open > 0 {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let arrival = match self.inbox.recv_timeout(left.min(GIVE_UP_INTERVAL)) {
                Ok(arrival) => arrival,
                Err(RecvTimeoutError::Timeout) if give_up() => return Err(ExpertError::GivenUp),
                Err(RecvTimeoutError::Timeout) if left <= GIVE_UP_INTERVAL => {
                    return Err(self.late());
                }
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Err(ExpertError::Closed),
            };
            open -= 1;
            let call = &mut self.calls[arrival.slot];
            call.id = None;
            let part = &mut self.parts[call.part];
            part.replies[call.holder] = arrival.rows?;
            part.missing -= 1;
            if part.missing == 0 {
                let out = &mut out[part.tokens.start * hidden..part.tokens.end * hidden];
                self.plan
                    .cover
                    .combine(&part.map, &part.replies, hidden, out);
            }
        }
        Ok(())
    }
}

impl Drop for PendingCluster<'_> {
    fn drop(&mut self) {
        for call in &self.calls {
            if let Some(id) = call.id {
                self.backend.links[call.link]
                    .calls
                    .cancel(id, self.given_up);
            }
        }
    }
}
