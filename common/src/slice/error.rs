use std::io;
use std::path::PathBuf;

use blake3::Hash;
use thiserror::Error;

use crate::gguf::{FormatError, GgufError, MetadataError, WriteError};
use crate::model::{Fingerprint, ModelError};
use crate::quant::UnknownLayout;
use crate::tiles::TileError;

/// Why a slice cannot be read, cut or written. Every message names the file.
#[derive(Debug, Error)]
pub enum SliceError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("{}: this would be no valid slice: {problem}", file.display())]
    Write { file: PathBuf, problem: WriteError },
    #[error("{} is no valid slice: {problem}", file.display())]
    Format { file: PathBuf, problem: FormatError },
    #[error("{} {action}: {problem}", file.display())]
    Io {
        file: PathBuf,
        action: &'static str,
        problem: io::Error,
    },
    #[error("{} is no slice: it lacks the key {}", file.display(), super::keys::VERSION)]
    NotASlice { file: PathBuf },
    #[error(
        "{} is a slice of format version {found}; this software reads version {}",
        file.display(),
        super::keys::FORMAT_VERSION
    )]
    Version { file: PathBuf, found: u32 },
    #[error("{}: {problem}", file.display())]
    Layout {
        file: PathBuf,
        problem: UnknownLayout,
    },
    #[error("{} holds no tiles", file.display())]
    NoTiles { file: PathBuf },
    #[error(
        "{} has {found} tile rectangles in all layers, allowed are {}",
        file.display(),
        super::MAX_PARTS
    )]
    Parts { file: PathBuf, found: usize },
    #[error("{}: layer {layer} of a model of {layers} layers", file.display())]
    Layer {
        file: PathBuf,
        layer: usize,
        layers: usize,
    },
    #[error("{}: tiles: {problem}", file.display())]
    Tiles { file: PathBuf, problem: TileError },
    #[error("{}: tensor {tensor} {problem}", file.display())]
    Tensor {
        file: PathBuf,
        tensor: String,
        problem: String,
    },
    #[error("{} is not complete: {present} of {tensors} tensors are there", file.display())]
    Incomplete {
        file: PathBuf,
        present: usize,
        tensors: usize,
    },
    #[error("{}: the head was altered: its digest is {found}, not {stated}", file.display())]
    Digest {
        file: PathBuf,
        stated: Hash,
        found: Hash,
    },
    #[error("{}: tensor {tensor} has the hash {found}, not {stated}", file.display())]
    TensorHash {
        file: PathBuf,
        tensor: String,
        stated: Hash,
        found: Hash,
    },
    #[error(
        "{} is a slice of the model {found}, not of {expected}",
        file.display()
    )]
    Foreign {
        file: PathBuf,
        expected: Fingerprint,
        found: Fingerprint,
    },
    #[error(
        "{name:?} cannot name a node: 1 to {} letters, digits, '-', '_' and '.', a letter or \
         digit first",
        super::MAX_NAME
    )]
    Name { name: String },
    #[error("{} is being written by another process", file.display())]
    Busy { file: PathBuf },
    #[error("{} has no room: {needed} bytes are needed, {free} are free", folder.display())]
    Room {
        folder: PathBuf,
        needed: u64,
        free: u64,
    },
}
