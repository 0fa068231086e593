//! Routed experts: the call that travels, and the one function that computes it.

mod batch;

pub use batch::{BatchError, ExpertBatch, ExpertInput, Route};
