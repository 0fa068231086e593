//! The expert node: maps its tiles of a model and computes them for coordinators.
//!
//! ```text
//! stream ─► session (decode, check) ─► bounded queue ─► worker (one thread and its rayon pool)
//!                                                          │
//! stream ◄─ outbox (encode)         ◄─ bounded channel ◄───┘
//! ```
//!
//! Tokio threads run no kernels: they decode activations in `session` and encode rows in `outbox`.
//! The compute thread touches no socket.
//!
//! A module imports only from the lines below its own:
//!
//! ```text
//! main
//! cli
//! bench · inspect · lifecycle   the commands
//! weight_args · embedded        flags that choose the weights; a node, from files to socket
//! load · node · pull            weights, ready to compute; servers; a slice from a coordinator
//! probe                         the service that measures this machine
//! service                       the other gRPC services
//! session                       one coordinator's stream
//! outbox · state                its replies; what streams share
//! worker                        the compute thread
//! integrity                     whether the weights are right, while they are served
//! memory · compute              the budget of calls; the trait that the worker runs
//! stats · weights               counters; the weights' place in the files
//! ```

pub mod bench;
pub mod cli;
pub mod compute;
mod embedded;
pub mod inspect;
mod integrity;
pub mod lifecycle;
pub mod load;
mod memory;
pub mod node;
mod outbox;
mod probe;
pub mod pull;
mod service;
mod session;
mod state;
pub mod stats;
mod weight_args;
mod weights;
pub mod worker;

pub use embedded::{EmbeddedNode, NodeConfig, StartError};
