//! The coordinator's side of the cluster: who is there, who computes what, and the two ways of
//! computing routed experts.
//!
//! ```text
//! engine thread: begin ── encode once ──> one call a node ─────┐ (never blocks)
//!                                                              v
//! tokio task a node:                     stream: work out, rows in, reconnect
//!                                                              │
//! engine thread: finish <── add in tree order <── mailbox <────┘
//! ```

mod assignment;
mod backend;
mod combine;
pub mod dispatch;
pub mod fabric;
mod link;
mod local;
mod membership;
pub mod node_metrics;
mod own_file;

#[cfg(test)]
mod loopback;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod simulation;

pub use backend::{ClusterBackend, ClusterOptions};
pub use link::inspect;
pub use local::LocalBackend;
pub use membership::{
    ClusterError, Expectation, NodeSpec, NodeState, NodeStatus, Resolver, SystemResolver, Table,
};
pub use own_file::{OwnExperts, OwnFile};
