//! From a model and machines to a plan.

use std::collections::BTreeSet;

use ds4_common::tiles::GridCut;
use ds4_common::tiles::{Holdings, TileError, TileRect};

use super::advice::{self, NoFit};
use super::cluster::{Cluster, NodeNumbers};
use super::demand::Demand;
use super::file::{PlanFile, PlanModel, PlanNode};
use super::place::{self, Part, Placement};
use super::predict::{Step, Work, first_token, step};
use super::replicas::{self, union};

#[cfg(test)]
mod tests;

/// Prompt tokens of one step.
pub const CHUNK: usize = 512;

/// Prompt of which the time to the first token is predicted.
pub const PROMPT: usize = 1000;

/// A finer cut has to be so much faster than a coarse one, which has fewer rectangles.
const WORTH: f64 = 0.98;

/// How copies are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// One more of each tile as far as there is memory.
    AsFit,
    /// So many more of every tile, or there is no plan.
    Exactly(usize),
}

/// Who holds what, and what is to be expected of it.
#[derive(Clone, Debug)]
pub struct Plan {
    pub demand: Demand,
    pub cluster: Cluster,
    pub placement: Placement,
    pub nodes: Vec<NodeShare>,
    /// The even cut that the first holders are, if they are one.
    pub cut: Option<GridCut>,
    /// Tiles of all layers, and how many of them have a second holder.
    pub tiles: u64,
    pub copied: u64,
    pub decode: Step,
    /// Of a full chunk.
    pub prefill: Step,
    /// Seconds to the first token of [`PROMPT`] tokens.
    pub first_token: f64,
    /// One a node.
    pub losses: Vec<Loss>,
}

/// One node's part of a plan.
#[derive(Clone, Debug)]
pub struct NodeShare {
    /// Everything that it holds.
    pub holdings: Holdings,
    /// What it stands by for, of that.
    pub replicas: Holdings,
    /// Bytes of what it computes as long as all is well.
    pub first_bytes: u64,
    pub replica_bytes: u64,
}

/// What it means that one node is gone.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Nodes that take over.
    pub heirs: Vec<usize>,
    /// Tiles that only the coordinator's file has then, and their bytes.
    pub uncovered: u64,
    pub uncovered_bytes: u64,
    /// Whether the coordinator can keep them in memory; else it reads them from its disk.
    pub cached: bool,
    pub decode: Step,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    NoFit(#[from] Box<NoFit>),
    #[error(transparent)]
    Tiles(#[from] TileError),
}

/// # Errors
/// The model does not fit into the nodes; says by how much, and what would help.
pub fn plan(demand: Demand, cluster: Cluster, copies: Copies) -> Result<Plan, PlanError> {
    let placement = best(&demand, &cluster, copies);
    let placement = placement.ok_or_else(|| advice::no_fit(&demand, &cluster, copies))?;
    describe(demand, cluster, placement)
}

/// Whether there is any placement, speed aside.
pub(super) fn fits(demand: &Demand, nodes: &[NodeNumbers], copies: Copies) -> bool {
    place::candidates(demand, nodes)
        .into_iter()
        .any(|mut placement| add_copies(&mut placement, demand, nodes, copies))
}

/// The fastest placement with its copies.
fn best(demand: &Demand, cluster: &Cluster, copies: Copies) -> Option<Placement> {
    let disk = cluster.coordinator.disk;
    let mut chosen: Option<(f64, Placement)> = None;
    for mut placement in place::candidates(demand, &cluster.nodes) {
        let seconds = step(
            demand,
            cluster,
            &works(demand, &placement, cluster.nodes.len(), None),
            1,
            disk,
        )
        .seconds;
        if chosen
            .as_ref()
            .is_some_and(|(best, _)| seconds > best * WORTH)
        {
            continue;
        }
        if add_copies(&mut placement, demand, &cluster.nodes, copies) {
            chosen = Some((seconds, placement));
        }
    }
    chosen.map(|(_, placement)| placement)
}

/// Whether all copies that were asked for have found a place.
fn add_copies(
    placement: &mut Placement,
    demand: &Demand,
    nodes: &[NodeNumbers],
    copies: Copies,
) -> bool {
    let count = match copies {
        Copies::AsFit => 1,
        Copies::Exactly(count) => count,
    };
    replicas::add(placement, demand, nodes, count);
    let complete = |part: &Part| part.holders.len() > count;
    copies == Copies::AsFit || placement.iter().flatten().all(complete)
}

/// Who computes each layer, with `lost` gone: the next holders, or else the coordinator.
fn works(demand: &Demand, placement: &Placement, count: usize, lost: Option<usize>) -> Vec<Work> {
    let layer = |parts: &Vec<Part>| {
        let mut work = Work {
            nodes: vec![Vec::new(); count],
            local: Vec::new(),
        };
        for part in parts {
            match part.holders.iter().find(|h| Some(**h) != lost) {
                Some(&node) => work.nodes[node].push(part.rect),
                None => work.local.push(part.rect),
            }
        }
        // Copies cut a node's tiles into parts with other successors; it is asked for all at once.
        for rects in &mut work.nodes {
            *rects = union(demand.grid, rects);
        }
        work
    };
    placement.iter().map(layer).collect()
}

fn describe(demand: Demand, cluster: Cluster, placement: Placement) -> Result<Plan, PlanError> {
    let all_there = works(&demand, &placement, cluster.nodes.len(), None);
    let disk = cluster.coordinator.disk;
    let decode = step(&demand, &cluster, &all_there, 1, disk);
    let prefill = step(&demand, &cluster, &all_there, CHUNK, disk);
    let first_token = first_token(&demand, &cluster, &all_there, PROMPT, CHUNK, disk);
    let count = cluster.nodes.len();
    let shares = (0..count).map(|node| share(&demand, &placement, node));
    let nodes = shares.collect::<Result<Vec<_>, TileError>>()?;
    let losses = (0..count)
        .map(|node| loss(&demand, &cluster, &placement, node))
        .collect();
    let parts = || placement.iter().flatten();
    let copied = parts().filter(|p| p.holders.len() > 1);
    Ok(Plan {
        cut: even_cut(&demand, &all_there),
        tiles: parts().map(|p| p.rect.tiles()).sum(),
        copied: copied.map(|p| p.rect.tiles()).sum(),
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
    let (mut first_bytes, mut replica_bytes) = (0, 0);
    let mut held = Vec::with_capacity(placement.len());
    let mut copies = Vec::with_capacity(placement.len());
    for (parts, layer) in placement.iter().zip(&demand.layers) {
        let (mut all, mut stand_by) = (Vec::new(), Vec::new());
        for part in parts.iter().filter(|p| p.holders.contains(&node)) {
            let bytes = layer.tiles.rect_bytes(part.rect);
            all.push(part.rect);
            if part.holders[0] == node {
                first_bytes += bytes;
            } else {
                replica_bytes += bytes;
                stand_by.push(part.rect);
            }
        }
        held.push(union(grid, &all));
        copies.push(union(grid, &stand_by));
    }
    Ok(NodeShare {
        holdings: Holdings::new(grid, held)?,
        replicas: Holdings::new(grid, copies)?,
        first_bytes,
        replica_bytes,
    })
}

fn loss(demand: &Demand, cluster: &Cluster, placement: &Placement, node: usize) -> Loss {
    let mut heirs = BTreeSet::new();
    let (mut uncovered, mut uncovered_bytes) = (0, 0);
    for (parts, layer) in placement.iter().zip(&demand.layers) {
        for part in parts.iter().filter(|p| p.holders[0] == node) {
            match part.holders.get(1) {
                Some(&heir) => {
                    heirs.insert(heir);
                }
                None => {
                    uncovered += part.rect.tiles();
                    uncovered_bytes += layer.tiles.rect_bytes(part.rect);
                }
            }
        }
    }
    let own = &cluster.coordinator;
    let cached = own.memory.is_some_and(|memory| {
        demand.dense_bytes + uncovered_bytes + super::cluster::default_reserve(memory) <= memory
    });
    let bandwidth = if cached { own.bandwidth } else { own.disk };
    let works = works(demand, placement, cluster.nodes.len(), Some(node));
    Loss {
        heirs: heirs.into_iter().collect(),
        uncovered,
        uncovered_bytes,
        cached,
        decode: step(demand, cluster, &works, 1, bandwidth),
    }
}

/// The cut whose rectangles the nodes have, one each and in every layer.
fn even_cut(demand: &Demand, works: &[Work]) -> Option<GridCut> {
    let (first, rest) = works.split_first()?;
    if rest.iter().any(|work| work != first) {
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

impl Plan {
    /// The plan as a file.
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
