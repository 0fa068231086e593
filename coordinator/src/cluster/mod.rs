//! Who computes the routed experts.

mod local;

pub use local::LocalBackend;
