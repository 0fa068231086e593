//! The expert node: maps its tiles of a model and computes them for coordinators.
//!
//! ```text
//! stream -> session (decode, check) -> bounded queue -> worker (one thread + rayon pool)
//!                                                         |
//! stream <- session (encode)        <- bounded channel <--+
//! ```
//!
//! A tokio thread never computes and the compute thread never touches a socket.

pub mod bench;
pub mod cli;
pub mod compute;
mod embedded;
pub mod inspect;
pub mod lifecycle;
pub mod load;
mod memory;
pub mod node;
mod outbox;
mod probe;
pub mod pull;
mod service;
mod session;
pub mod stats;
mod warming;
mod weight_args;
mod weights;
pub mod worker;

pub use embedded::{EmbeddedNode, NodeConfig, StartError};
