//! The coordinator's side of the cluster: who is there, who computes what, and the two ways of
//! computing routed experts.
//!
//! ```text
//! engine thread: begin ── encode once ──> calls of each node ──┐ (bounded, never blocks)
//!                                                              v
//! tokio task a node:                     stream: work out, rows in, reconnect
//!                                                              │
//! engine thread: finish <── add in tree order <── arrivals <───┘
//! ```

mod assignment;
mod backend;
mod calls;
mod combine;
mod local;
mod membership;
pub mod node_metrics;
mod transport;

#[cfg(test)]
mod loopback;

pub use assignment::{AssignmentError, assign};
pub use backend::{ClusterBackend, ClusterOptions};
pub use local::LocalBackend;
pub use membership::{ClusterError, Expectation, Member, gather, inspect};
pub(crate) use transport::{reason, status_text};
