//! Which node holds which tiles: the plan, how it is made, and the file that it is kept in.

mod advice;
mod cluster;
mod cover;
mod demand;
mod file;
mod machine;
mod place;
mod planner;
mod predict;
mod replicas;
mod shares;
#[cfg(test)]
mod test_models;

use std::io::Read;
use std::path::Path;

pub use advice::NoFit;
pub use cluster::{
    Assumptions, Cluster, ClusterFile, ClusterSpecError, CoordinatorNumbers, NodeNumbers,
    default_reserve,
};
pub use cover::{Piece, pieces};
pub use demand::{Demand, LayerDemand, TileCosts};
pub use file::{MAX_NODES, PlanFile, PlanFileError, PlanModel, PlanNode, VERSION};
pub use machine::{CoordinatorMachine, Machine, is_name};
pub use place::{Part, Placement};
pub use planner::{CHUNK, Copies, Loss, NodeShare, PROMPT, Plan, PlanError, plan};
pub use predict::{CALL_SECONDS, Step, Work, step};

/// A text file of at most `most` bytes.
fn read_text(path: &Path, most: u64) -> Result<String, PlanFileError> {
    let file = || path.to_path_buf();
    let failed = |problem| PlanFileError::Io {
        file: file(),
        problem,
    };
    let mut text = String::new();
    let opened = std::fs::File::open(path).map_err(failed)?;
    let read = opened.take(most + 1).read_to_string(&mut text);
    if read.map_err(failed)? as u64 > most {
        return Err(PlanFileError::TooLarge { file: file(), most });
    }
    Ok(text)
}
