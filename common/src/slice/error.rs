//! Errors of reading, cutting and writing slices.

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
    /// The file cannot be read, or is not a valid GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A key is missing or holds an unsupported value.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The keys do not describe a model of this architecture.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The head of the slice cannot be stored.
    #[error("{}: this would not be a valid slice: {problem}", file.display())]
    Write {
        /// File that the message names.
        file: PathBuf,
        /// What is wrong.
        problem: WriteError,
    },
    /// The head of the slice cannot be parsed.
    #[error("{} is not a valid slice: {problem}", file.display())]
    Format {
        /// File that the message names.
        file: PathBuf,
        /// What is wrong.
        problem: FormatError,
    },
    /// The operating system failed.
    #[error("{} {action}: {problem}", file.display())]
    Io {
        /// File that the message names.
        file: PathBuf,
        /// What failed, to follow the file's name.
        action: &'static str,
        /// Its error.
        problem: io::Error,
    },
    /// A GGUF file without the keys of a slice.
    #[error("{} is not a slice: it lacks the key {}", file.display(), super::keys::VERSION)]
    NotASlice {
        /// File that the message names.
        file: PathBuf,
    },
    /// A slice of another format version.
    #[error(
        "{} is a slice of format version {found}; this software reads version {}",
        file.display(),
        super::keys::FORMAT_VERSION
    )]
    Version {
        /// File that the message names.
        file: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The weights are stored in an unknown order.
    #[error("{}: {problem}", file.display())]
    Layout {
        /// File that the message names.
        file: PathBuf,
        /// What is wrong.
        problem: UnknownLayout,
    },
    /// The list of tiles is empty.
    #[error("{} holds no tiles", file.display())]
    NoTiles {
        /// File that the message names.
        file: PathBuf,
    },
    /// There are too many rectangles.
    #[error(
        "{} has {found} tile rectangles in all layers, more than the limit of {}",
        file.display(),
        super::MAX_PARTS
    )]
    Parts {
        /// File that the message names.
        file: PathBuf,
        /// Their number.
        found: usize,
    },
    /// Tiles of a layer that the model does not have.
    #[error("{}: layer {layer} does not exist: the model has {layers} layers", file.display())]
    Layer {
        /// File that the message names.
        file: PathBuf,
        /// The layer, or the number of layers that were given.
        layer: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// The rectangles of a layer are not disjoint tiles of the model's grid.
    #[error("{}: tiles: {problem}", file.display())]
    Tiles {
        /// File that the message names.
        file: PathBuf,
        /// What is wrong.
        problem: TileError,
    },
    /// A tensor is not the one that the tiles require.
    #[error("{}: tensor {tensor} {problem}", file.display())]
    Tensor {
        /// File that the message names.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// What is wrong, to follow the tensor's name.
        problem: String,
    },
    /// Tensors are missing.
    #[error("{} is incomplete: {present} of {tensors} tensors are present", file.display())]
    Incomplete {
        /// File that the message names.
        file: PathBuf,
        /// Tensors that are complete.
        present: usize,
        /// Tensors of the slice.
        tensors: usize,
    },
    /// The head is not the one that was written.
    #[error("{}: the head was altered: its digest is {found}, not {stated}", file.display())]
    Digest {
        /// File that the message names.
        file: PathBuf,
        /// Digest in the file.
        stated: Hash,
        /// Digest of what the head says.
        found: Hash,
    },
    /// A tensor's data is not what was written.
    #[error("{}: tensor {tensor} has the hash {found}, not {stated}", file.display())]
    TensorHash {
        /// File that the message names.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Hash in the file, or of the sender.
        stated: Hash,
        /// Hash of the data.
        found: Hash,
    },
    /// A slice of another model.
    #[error(
        "{} is a slice of the model {found}, not of {expected}",
        file.display()
    )]
    Foreign {
        /// File that the message names.
        file: PathBuf,
        /// Fingerprint of the model.
        expected: Fingerprint,
        /// Fingerprint in the slice.
        found: Fingerprint,
    },
    /// A node's name cannot be the name of a file.
    #[error(
        "{name:?} is not a valid node name: use 1 to {} letters, digits, '-', '_' and '.', with a \
         letter or digit first",
        super::MAX_NAME
    )]
    Name {
        /// The name, cut to [`super::MAX_NAME`] characters.
        name: String,
    },
    /// Another process holds the lock of the file.
    #[error("{} is being written by another process", file.display())]
    Busy {
        /// File that the message names.
        file: PathBuf,
    },
    /// The disk is too small for the slice.
    #[error("not enough space in {}: {needed} bytes are needed, {free} are free", folder.display())]
    Room {
        /// Folder of the slice.
        folder: PathBuf,
        /// Bytes that writing takes.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
}
