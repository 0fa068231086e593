//! The scheduler and the HTTP API over a scripted model, through real sockets.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod chat;
mod completions;
mod connections;
mod errors;
mod health;
mod https;
mod lifecycle;
mod metrics;
mod property;
mod scheduler;
mod script;
mod server;
mod tools;
mod web;
