//! The wire between coordinator and expert nodes: generated messages, their checked forms, and
//! the transport settings of both sides.

pub mod channel;
pub mod connections;
pub mod error_text;
mod first_message;
pub mod gate;
pub mod limits;
pub mod security;
pub mod tls;
pub mod wire;

/// Generated from `proto/ds4/v1/*.proto`; `UPDATE_GEN=1 cargo test -p ds4-proto --test bootstrap`
/// regenerates it.
#[allow(
    clippy::all,
    clippy::pedantic,
    missing_debug_implementations,
    missing_docs,
    unreachable_pub
)]
#[rustfmt::skip]
#[path = "gen/ds4.v1.rs"]
pub mod pb;
