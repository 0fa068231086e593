//! Quantised formats: what a block of each type holds, in plain Rust.
//!
//! A weight block is bytes in a mapped file; an activation block ([`BlockQ8`], [`BlockQ8K`]) is a
//! value that this crate makes. Layouts are those of GGUF.

mod activation;
mod block;
mod ggml_type;

pub use activation::{BlockQ8, BlockQ8K};
pub use ggml_type::{ActivationFormat, GgmlType, UnknownType};
