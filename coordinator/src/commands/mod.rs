//! `ds4-coord`'s commands: wiring and printing, no algorithms.

pub mod assembly;
pub mod bench;
pub mod chat;
pub mod cli;
pub mod inspect;
pub mod logits;
pub mod model_args;
pub mod out_file;
pub mod reference_model;
pub mod serve;
pub mod service;
pub mod synth;
