//! The forward pass: chunks of tokens in, logits out. Synchronous; no sockets, no runtime.

mod backend;

pub use backend::{ExpertBackend, ExpertError, PendingExperts};
