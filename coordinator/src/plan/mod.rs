//! Plans before anything is bought or cut: which node of a cluster should hold which tiles, how
//! many replicas fit, how fast the cluster will be, and the file that keeps the answer.
//!
//! A module imports only from those above it:
//!
//! ```text
//! machine       properties of one machine
//! demand        what the model requires: bytes, operations, messages
//! held_rects    a layer's grid, cut by which nodes hold what
//! file          the plan as TOML (file/raw.rs: its fields and their checks)
//! cluster_spec  all machines, with assumptions where nothing is known
//! machine_flags machines as flags describe them
//! shares        how much of a layer each node gets
//! placement     which tiles: the primary replica of each
//! replicas      further replicas, as far as memory goes
//! advice        what would be enough where a model does not fit
//! predict       the time of a step
//! planner       from a model and machines to a plan
//! ```

mod advice;
mod cluster_spec;
mod demand;
mod file;
mod held_rects;
mod machine;
mod machine_flags;
mod placement;
mod planner;
mod predict;
mod replicas;
mod shares;
#[cfg(test)]
mod test_models;

pub use advice::NoFit;
pub use cluster_spec::{
    Assumptions, ClusterFile, ClusterSpec, ClusterSpecError, CoordinatorNumbers, NodeNumbers,
    default_reserve,
};
pub use demand::{Demand, LayerDemand, TileCosts};
pub use file::{MAX_NODES, PlanFile, PlanFileError, PlanModel, PlanNode, VERSION};
pub use machine::{CoordinatorMachine, NodeMachine, is_name};
pub use placement::{PlacedRect, Placement};
pub use planner::{CHUNK, NodeLoss, NodeShare, PROMPT, PlacementPlan, PlanError, plan};
pub use predict::{CALL_SECONDS, LayerLoad, StepTime, predict_step};
pub use replicas::ExtraReplicas;
