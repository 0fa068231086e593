//! Tests that link every crate: golden outputs, clusters of real processes, files, flags, manifests.

mod api;
mod bad_flags;
mod bad_input;
mod calibrate;
mod certs;
mod closed_pipe;
mod cluster;
mod deploy;
mod engine;
mod formats;
mod golden;
mod mtls;
mod plan;
mod slices;
mod tidy;
mod variants;
