//! From a model and machines to a plan.

use std::collections::BTreeSet;

use ds4_common::tiles::{GridCut, Holdings, TileError, TileRect};

use super::advice::{self, NoFit};
use super::cluster_spec::{ClusterSpec, default_reserve};
use super::demand::Demand;
use super::file::{PlanFile, PlanModel, PlanNode};
use super::placement::{self, PlacedRect, Placement};
use super::predict::{LayerLoad, StepTime, first_token, predict_step};
use super::replicas::{self, ExtraReplicas, union};

#[cfg(test)]
mod tests;

/// Prompt tokens of one prefill step in predictions.
pub const CHUNK: usize = 512;

/// Tokens of the prompt for which the time to the first token is predicted.
pub const PROMPT: usize = 1000;

/// A finer cut, which has more rectangles, is taken only if its step needs less than this share of
/// the coarser one's time.
const WORTH: f64 = 0.98;

/// Which nodes hold which tiles, and what to expect of the cluster.
#[derive(Clone, Debug)]
pub struct PlacementPlan {
    /// The model.
    pub demand: Demand,
    /// The machines.
    pub cluster: ClusterSpec,
    /// All replicas of all tiles, layer by layer.
    pub placement: Placement,
    /// The same, node by node.
    pub nodes: Vec<NodeShare>,
    /// The cut into equal rectangles that the primary replicas follow, if they follow one.
    pub cut: Option<GridCut>,
    /// Number of tiles, of all layers.
    pub tiles: u64,
    /// How many of them have a second replica.
    pub replicated_tiles: u64,
    /// A step of one token.
    pub decode: StepTime,
    /// A step of [`CHUNK`] tokens.
    pub prefill: StepTime,
    /// Seconds from the arrival of a prompt of [`PROMPT`] tokens to the first token.
    pub first_token: f64,
    /// The loss of each node, by node.
    pub losses: Vec<NodeLoss>,
}

/// What one node holds.
#[derive(Clone, Debug)]
pub struct NodeShare {
    /// All its tiles.
    pub holdings: Holdings,
    /// The tiles among them for which it only stands by.
    pub replicas: Holdings,
    /// Bytes of the tiles that it computes while all nodes are up.
    pub primary_bytes: u64,
    /// Bytes of the tiles for which it stands by.
    pub replica_bytes: u64,
}

/// What happens if one node is lost.
#[derive(Clone, Debug)]
pub struct NodeLoss {
    /// Indices of the nodes that take over, ascending.
    pub successors: Vec<usize>,
    /// Number of tiles that no other node holds, so that only the coordinator's file has them.
    pub uncovered: u64,
    /// Their bytes.
    pub uncovered_bytes: u64,
    /// Whether these tiles fit into the coordinator's memory; otherwise it reads them from its
    /// disk in every step.
    pub cached: bool,
    /// A step of one token without the node.
    pub decode: StepTime,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The nodes have too little memory.
    #[error(transparent)]
    NoFit(#[from] Box<NoFit>),
    /// The tiles that the planner chose are not a valid set, which would be a defect of it.
    #[error(transparent)]
    Tiles(#[from] TileError),
}

/// Places a model on a cluster and predicts what comes of it.
///
/// # Errors
/// [`PlanError::NoFit`] if the nodes have no room for the model and the replicas that `extra`
/// requires; it tells by how much, and what would be enough.
pub fn plan(
    demand: Demand,
    cluster: ClusterSpec,
    extra: ExtraReplicas,
) -> Result<PlacementPlan, PlanError> {
    let placement = fastest(&demand, &cluster, extra);
    let placement = placement.ok_or_else(|| advice::no_fit(&demand, &cluster, extra))?;
    describe(demand, cluster, placement)
}

/// The placement whose step of one token is fastest, with its replicas.
fn fastest(demand: &Demand, cluster: &ClusterSpec, extra: ExtraReplicas) -> Option<Placement> {
    let disk = cluster.coordinator.disk;
    let mut chosen: Option<(f64, Placement)> = None;
    for mut placement in placement::candidates(demand, &cluster.nodes) {
        let loads = layer_loads(demand, &placement, cluster.nodes.len(), None);
        let seconds = predict_step(demand, cluster, &loads, 1, disk).seconds;
        if chosen
            .as_ref()
            .is_some_and(|(best, _)| seconds > best * WORTH)
        {
            continue;
        }
        if replicas::add(&mut placement, demand, &cluster.nodes, extra) {
            chosen = Some((seconds, placement));
        }
    }
    chosen.map(|(_, placement)| placement)
}

/// Who computes the tiles of each layer if the node `lost` is gone: the next replica of each, or
/// the coordinator where there is none.
fn layer_loads(
    demand: &Demand,
    placement: &Placement,
    nodes: usize,
    lost: Option<usize>,
) -> Vec<LayerLoad> {
    let layer = |placed: &Vec<PlacedRect>| {
        let mut load = LayerLoad {
            nodes: vec![Vec::new(); nodes],
            local: Vec::new(),
        };
        for PlacedRect { rect, replicas } in placed {
            match replicas.iter().find(|node| Some(**node) != lost) {
                Some(&node) => load.nodes[node].push(*rect),
                None => load.local.push(*rect),
            }
        }
        // Replicas cut a node's tiles into rectangles, but one call covers them all.
        for rects in &mut load.nodes {
            *rects = union(demand.grid, rects);
        }
        load
    };
    placement.iter().map(layer).collect()
}

fn describe(
    demand: Demand,
    cluster: ClusterSpec,
    placement: Placement,
) -> Result<PlacementPlan, PlanError> {
    let count = cluster.nodes.len();
    let loads = layer_loads(&demand, &placement, count, None);
    let disk = cluster.coordinator.disk;
    let decode = predict_step(&demand, &cluster, &loads, 1, disk);
    let prefill = predict_step(&demand, &cluster, &loads, CHUNK, disk);
    let first_token = first_token(&demand, &cluster, &loads, PROMPT, CHUNK, disk);
    let shares = (0..count).map(|node| share(&demand, &placement, node));
    let nodes = shares.collect::<Result<Vec<_>, TileError>>()?;
    let losses = (0..count)
        .map(|node| loss(&demand, &cluster, &placement, node))
        .collect();
    let placed = || placement.iter().flatten();
    let replicated = placed().filter(|p| p.replicas.len() > 1);
    Ok(PlacementPlan {
        cut: even_cut(&demand, &loads),
        tiles: placed().map(|p| p.rect.tiles()).sum(),
        replicated_tiles: replicated.map(|p| p.rect.tiles()).sum(),
        nodes,
        decode,
        prefill,
        first_token,
        losses,
        demand,
        cluster,
        placement,
    })
}

fn share(demand: &Demand, placement: &Placement, node: usize) -> Result<NodeShare, TileError> {
    let grid = demand.grid;
    let (mut primary_bytes, mut replica_bytes) = (0, 0);
    let mut held = Vec::with_capacity(placement.len());
    let mut standing_by = Vec::with_capacity(placement.len());
    for (placed, layer) in placement.iter().zip(&demand.layers) {
        let (mut all, mut stand_by) = (Vec::new(), Vec::new());
        for PlacedRect { rect, replicas } in placed {
            if !replicas.contains(&node) {
                continue;
            }
            let bytes = layer.tiles.rect_bytes(*rect);
            all.push(*rect);
            if replicas[0] == node {
                primary_bytes += bytes;
            } else {
                replica_bytes += bytes;
                stand_by.push(*rect);
            }
        }
        held.push(union(grid, &all));
        standing_by.push(union(grid, &stand_by));
    }
    Ok(NodeShare {
        holdings: Holdings::new(grid, held)?,
        replicas: Holdings::new(grid, standing_by)?,
        primary_bytes,
        replica_bytes,
    })
}

fn loss(demand: &Demand, cluster: &ClusterSpec, placement: &Placement, node: usize) -> NodeLoss {
    let mut successors = BTreeSet::new();
    let (mut uncovered, mut uncovered_bytes) = (0, 0);
    for (placed, layer) in placement.iter().zip(&demand.layers) {
        for PlacedRect { rect, replicas } in placed.iter().filter(|p| p.replicas[0] == node) {
            match replicas.get(1) {
                Some(&next) => {
                    successors.insert(next);
                }
                None => {
                    uncovered += rect.tiles();
                    uncovered_bytes += layer.tiles.rect_bytes(*rect);
                }
            }
        }
    }
    let own = &cluster.coordinator;
    let cached = own.memory.is_some_and(|memory| {
        demand.dense_bytes + uncovered_bytes + default_reserve(memory) <= memory
    });
    let bandwidth = if cached { own.bandwidth } else { own.disk };
    let loads = layer_loads(demand, placement, cluster.nodes.len(), Some(node));
    NodeLoss {
        successors: successors.into_iter().collect(),
        uncovered,
        uncovered_bytes,
        cached,
        decode: predict_step(demand, cluster, &loads, 1, bandwidth),
    }
}

/// The cut whose rectangles the nodes have, one each, the same in every layer.
fn even_cut(demand: &Demand, loads: &[LayerLoad]) -> Option<GridCut> {
    let (first, rest) = loads.split_first()?;
    if rest.iter().any(|load| load != first) {
        return None;
    }
    let one_each = first.nodes.iter().all(|rects| rects.len() == 1);
    let mut rects: Vec<TileRect> = first.nodes.iter().flatten().copied().collect();
    rects.sort_by_key(|r| (r.experts, r.blocks));
    let strips = rects.iter().filter(|r| r.experts.start == 0).count().max(1);
    let (groups, strips) = ((rects.len() / strips) as u32, strips as u32);
    let cut = demand.grid.cut(groups, strips).ok()?;
    (one_each && cut == rects).then_some(GridCut { groups, strips })
}

impl PlacementPlan {
    /// The part of the plan that a file keeps: the model, the machines and their tiles.
    #[must_use]
    pub fn file(&self) -> PlanFile {
        let nodes = self.nodes.iter().zip(&self.cluster.nodes);
        PlanFile {
            model: PlanModel {
                name: self.demand.name.clone(),
                fingerprint: self.demand.fingerprint,
                layers: self.demand.layers.len(),
                grid: self.demand.grid,
                cut: self.cut,
            },
            coordinator: self.cluster.coordinator.machine.clone(),
            nodes: nodes
                .map(|(share, numbers)| PlanNode {
                    machine: numbers.machine.clone(),
                    holdings: share.holdings.clone(),
                    replicas: share.replicas.clone(),
                })
                .collect(),
            partial: false,
        }
    }
}
