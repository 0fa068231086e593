//! Routed experts: the batch that travels, and the one function that computes it.
//!
//! ```text
//! computer ─► store ─► compute ─► schedule ─► batch ─► shape
//!                 └──► layer ◄───────┘
//!                        └─► weights
//! ```

mod batch;
mod checksum;
mod compute;
mod computer;
mod layer;
mod schedule;
mod shape;
#[cfg(test)]
mod slice_tests;
mod store;
mod weights;

pub use batch::{BatchError, BatchFields, ExpertBatch, ExpertInput, Route};
pub use compute::{ExpertScratch, swiglu};
pub use computer::TileComputer;
pub use shape::MoeShape;
pub use store::ExpertStore;
pub use weights::{ExpertShape, StoreError};
