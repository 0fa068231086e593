//! The coordinator: from prompt to token.

pub mod authority;
pub mod cluster;
pub mod commands;
pub mod engine;
pub mod http;
pub mod plan;
pub mod prompt;
pub mod sampling;
pub mod scheduler;
pub mod share;
