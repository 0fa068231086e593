//! Errors of models that are valid files, but not models that this engine runs.

use std::path::PathBuf;

use thiserror::Error;

use crate::gguf::{GgufError, MetadataError};
use crate::quant::GgmlType;

/// Why a well-formed GGUF file is not a model that this engine can run. Every message names the
/// file.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The files cannot be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A key is missing or holds an unsupported value.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The model is a DeepSeek V4.1.
    #[error(
        "{} is a DeepSeek V4.1 model (architecture deepseek41), which is another architecture; \
         only deepseek4 is supported",
        file.display()
    )]
    DeepSeek41 {
        /// File that the message names.
        file: PathBuf,
    },
    /// The model is of another architecture.
    #[error(
        "{} has the architecture {found:?}; only deepseek4 is supported",
        file.display()
    )]
    Architecture {
        /// File that the message names.
        file: PathBuf,
        /// Its architecture.
        found: String,
    },
    /// Tensors that the architecture needs do not exist.
    #[error("{} lacks tensors: {}", file.display(), super::names::summary(missing))]
    MissingTensors {
        /// File that the message names.
        file: PathBuf,
        /// Their names.
        missing: Vec<String>,
    },
    /// A tensor has another shape than the metadata requires.
    #[error(
        "{}: tensor {tensor} has the shape {found:?}, but the metadata requires {expected}",
        file.display()
    )]
    Shape {
        /// File that the message names.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// The shapes allowed, as text.
        expected: String,
        /// Its dimensions, fastest first.
        found: Vec<u64>,
    },
    /// A tensor has a type that its role does not allow.
    #[error("{}: tensor {tensor} has the type {found}, but must be {expected}", file.display())]
    Type {
        /// File that the message names.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// The types allowed, as text.
        expected: &'static str,
        /// Its type.
        found: GgmlType,
    },
    /// A tensor exists under two of its names.
    #[error("{}: tensors {first} and {second} are two names of the same weights", file.display())]
    TwoNames {
        /// File that the message names.
        file: PathBuf,
        /// The preferred name.
        first: String,
        /// The other name.
        second: String,
    },
    /// A table of a hash-routed layer names an expert that does not exist.
    #[error(
        "{}: tensor {tensor} routes token {token} to expert {expert} of {experts}",
        file.display()
    )]
    HashRoute {
        /// File that the message names.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Token id: the row of the table.
        token: usize,
        /// The entry.
        expert: i32,
        /// Experts of a layer.
        experts: usize,
    },
    /// A small tensor holds an infinity or a NaN.
    #[error("{}: value {index} of tensor {tensor} is not finite: {value}", file.display())]
    NotFinite {
        /// File that the message names.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Position of the value, in storage order.
        index: usize,
        /// The value.
        value: f32,
    },
}
