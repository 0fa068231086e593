//! The feed-forward half of a layer: the router, which chooses the experts that the
//! [`super::ExpertBackend`] computes, and the shared expert, which runs while they are computed.

mod router;
mod shared_expert;

pub(crate) use router::{RouterScratch, route, top_k};
pub(crate) use shared_expert::{SharedScratch, shared_expert};
