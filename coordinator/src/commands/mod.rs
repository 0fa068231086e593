//! `ds4-coord`'s commands: wiring and printing, no algorithms.

pub mod assembly;
pub mod bench;
pub mod calibrate;
pub mod certificates;
pub mod certs;
pub mod chat;
pub mod cli;
pub mod cut_args;
mod http_args;
pub mod inspect;
pub mod join_args;
pub mod logits;
pub mod metrics;
pub mod model_args;
pub mod out_file;
pub mod plan;
mod progress;
pub mod reference_model;
pub mod serve;
pub mod service;
pub mod share;
pub mod slice;
pub mod synth;
pub mod trace;
pub mod verify;
