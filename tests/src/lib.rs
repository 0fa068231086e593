//! What the golden, cluster, machine and chaos tests share.

pub mod distribution;
pub mod golden;
pub mod layout;
pub mod namespace;
pub mod process;
pub mod relay;
pub mod rewrite;
