//! The real binaries and the engine from the outside: one test program, one module for each subject.

mod api;
mod bad_flags;
mod bad_input;
mod calibrate;
mod certs;
mod closed_pipe;
mod cluster;
mod deploy;
mod doors;
mod engine;
mod expiry;
mod files;
mod formats;
mod golden;
mod hostile_bodies;
mod mtls;
mod plan;
mod slices;
mod tidy;
mod trace;
mod variants;
mod wrong_numbers;
