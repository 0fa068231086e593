//! Shared parts of the golden and cluster tests.

pub mod distribution;
pub mod golden;
pub mod layout;
pub mod namespace;
pub mod process;
pub mod relay;
pub mod rewrite;
