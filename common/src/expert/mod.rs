//! Routed experts: the call that travels, and the one function that computes it.

mod batch;
mod compute;
mod schedule;
#[cfg(test)]
mod slice_tests;
mod store;
mod weights;

pub use batch::{BatchError, ExpertBatch, ExpertInput, Route};
pub use compute::{ExpertScratch, swiglu};
pub use store::{ExpertShape, ExpertStore, StoreError};
