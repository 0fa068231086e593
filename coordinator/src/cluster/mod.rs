//! The coordinator's side of the cluster: computes the routed experts of a layer, on nodes or in
//! this process.
//!
//! ```text
//! engine thread:      begin ── encode once ──► one call for each node ──┐ (never blocks)
//!                                                                       ▼
//! tokio task per node:                   stream: work out, rows in, reconnect
//!                                                                       │
//! engine thread:      finish ◄── add in tree order ◄── mailbox ◄────────┘
//! ```
//!
//! From top to bottom: `backend` puts a cluster together; `link` keeps one connection to each
//! node; `known_calls` are what it computes before it is used; `dispatch` chooses replicas and fails
//! over; `membership` knows the nodes; `local` computes everything in this process and
//! `local_fallback` what no node can; `tile_assignment` assigns tiles to replicas; `combine` adds the
//! rows; `node_metrics` counts what happens to each node; `health_state` is how far one is relied
//! on; `transport` is what the dispatcher needs from the world.

mod backend;
mod combine;
pub mod dispatch;
mod health_state;
mod known_calls;
mod link;
mod local;
mod local_fallback;
mod membership;
pub mod node_metrics;
mod tile_assignment;
pub mod transport;

#[cfg(test)]
mod loopback;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod simulation;

pub use backend::{ClusterBackend, ClusterOptions};
pub use health_state::HealthState;
pub use link::{OneCallError, TileRows, call_once};
pub use local::LocalBackend;
pub use local_fallback::{FallbackExperts, LocalExperts};
pub use membership::{
    ClusterError, ClusterStatus, Expectation, NodeSpec, NodeState, NodeStatus, NodeTable, Resolver,
    SystemResolver,
};
