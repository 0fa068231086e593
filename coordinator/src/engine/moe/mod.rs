//! The feed-forward half of a layer: routed experts behind the [`super::ExpertBackend`] seam and
//! the shared expert, which runs in the shadow of the wait for them.

mod router;
mod shared_expert;

pub(crate) use router::{RouterScratch, route, top_k};
pub(crate) use shared_expert::{SharedScratch, shared_expert};
