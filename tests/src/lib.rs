//! Shared parts of the golden and cluster tests.

pub mod golden;
pub mod process;
pub mod rewrite;
