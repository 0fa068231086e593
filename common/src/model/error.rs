use std::path::PathBuf;

use thiserror::Error;

use crate::gguf::{GgufError, MetadataError};
use crate::quant::GgmlType;

/// Why a well-formed GGUF file is no model that this engine can run. Every message names the file.
#[derive(Debug, Error)]
pub enum ModelError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(
        "{} is a DeepSeek V4.1 model (architecture deepseek41), which is another architecture; \
         only deepseek4 is supported",
        file.display()
    )]
    DeepSeek41 { file: PathBuf },
    #[error(
        "{} has the architecture {found:?}; only deepseek4 is supported",
        file.display()
    )]
    Architecture { file: PathBuf, found: String },
    #[error("{} lacks tensors: {}", file.display(), super::names::summary(missing))]
    MissingTensors { file: PathBuf, missing: Vec<String> },
    #[error(
        "{}: tensor {tensor} has the shape {found:?}, but the metadata asks for {expected}",
        file.display()
    )]
    Shape {
        file: PathBuf,
        tensor: String,
        expected: String,
        found: Vec<u64>,
    },
    #[error("{}: tensor {tensor} has the type {found}, but must be {expected}", file.display())]
    Type {
        file: PathBuf,
        tensor: String,
        expected: &'static str,
        found: GgmlType,
    },
    #[error("{}: tensors {first} and {second} are two names of the same weights", file.display())]
    TwoNames {
        file: PathBuf,
        first: String,
        second: String,
    },
    #[error(
        "{}: tensor {tensor} routes token {token} to expert {expert}, but there are {experts}",
        file.display()
    )]
    HashRoute {
        file: PathBuf,
        tensor: String,
        token: usize,
        expert: i32,
        experts: usize,
    },
}
