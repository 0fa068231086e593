use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::MetadataError;
use crate::quant::UnknownType;

/// Why a model file, or a set of them, cannot be read. Every message names the file.
#[derive(Debug, Error)]
pub enum GgufError {
    #[error("cannot read {}: {problem}", file.display())]
    Io { file: PathBuf, problem: io::Error },
    #[error("{} is not a regular file", file.display())]
    NotAFile { file: PathBuf },
    #[error("{} is empty", file.display())]
    Empty { file: PathBuf },
    #[error("{} is no valid GGUF file: {problem}", file.display())]
    Format { file: PathBuf, problem: FormatError },
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("no model file was named")]
    NoFiles,
    #[error("{} was named twice", file.display())]
    SameFileTwice { file: PathBuf },
    #[error(
        "{} is part {part} of {count} by its split.* keys, but its name does not end in \
         {expected:?}, so the other parts cannot be found",
        file.display()
    )]
    SplitName {
        file: PathBuf,
        part: u32,
        count: u32,
        expected: String,
    },
    #[error("{}: split.no {no} is not below split.count {count}", file.display())]
    SplitNumber { file: PathBuf, no: u32, count: u32 },
    #[error("part {part} of {count} of the model is missing: there is no {}", file.display())]
    MissingPart {
        file: PathBuf,
        part: u32,
        count: u32,
    },
    #[error(
        "{} should be part {part} of {count}, but its split.* keys say part {found_part} of \
         {found_count}",
        file.display()
    )]
    WrongPart {
        file: PathBuf,
        part: u32,
        count: u32,
        found_part: u32,
        found_count: u32,
    },
    #[error(
        "{}: split.tensors.count says {expected} tensors, but the {parts} parts hold {found}",
        file.display()
    )]
    TensorCount {
        file: PathBuf,
        expected: u64,
        found: u64,
        parts: usize,
    },
    #[error("tensor {tensor} is in {} and in {}", first.display(), second.display())]
    DuplicateTensor {
        tensor: String,
        first: PathBuf,
        second: PathBuf,
    },
    #[error(
        "{} and {} are no parts of one model: their values of {key} differ",
        first.display(),
        second.display()
    )]
    ShardsDisagree {
        key: String,
        first: PathBuf,
        second: PathBuf,
    },
    #[error("{} has no tensor {tensor}", file.display())]
    MissingTensor { file: PathBuf, tensor: String },
    #[error("{}: tensor {tensor} cannot be used: {problem}", file.display())]
    UnsupportedTensor {
        file: PathBuf,
        tensor: String,
        problem: UnknownType,
    },
}

/// What is wrong inside of one GGUF file. [`GgufError::Format`] adds which file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FormatError {
    #[error("it does not start with the GGUF magic")]
    Magic,
    #[error("GGUF version {0} is not supported (2 and 3 are)")]
    Version(u32),
    #[error("it is a big-endian file, only little-endian ones are supported")]
    BigEndian,
    #[error("it is truncated: {what} at byte {offset} does not fit into the file's {length} bytes")]
    Truncated {
        what: &'static str,
        offset: u64,
        length: u64,
    },
    #[error(
        "{what} says {count}, which take at least {needed} bytes, but only {left} of the file's \
         {length} bytes follow: it is truncated, or the count is wrong"
    )]
    TooFewBytes {
        what: &'static str,
        count: u64,
        needed: u64,
        left: u64,
        length: u64,
    },
    #[error("its header is longer than {limit} bytes")]
    HeaderTooLong { limit: u64 },
    #[error("{what} says {count}, which cannot be right (limit {limit})")]
    Count {
        what: &'static str,
        count: u64,
        limit: u64,
    },
    #[error("{what} at byte {offset} is not UTF-8")]
    Utf8 { what: &'static str, offset: u64 },
    #[error("{what} at byte {offset} has a control character")]
    ControlCharacter { what: &'static str, offset: u64 },
    #[error("key {key}: value type id {id} is unknown")]
    ValueType { key: String, id: u32 },
    #[error("key {key}: {byte} is no boolean")]
    Bool { key: String, byte: u8 },
    #[error("key {key}: arrays are nested more than {limit} deep")]
    Nesting { key: String, limit: usize },
    #[error("key {key} is there twice")]
    DuplicateKey { key: String },
    #[error(
        "general.alignment is {found}, but must be a power of two from {least} to {most}, as an \
         unsigned integer"
    )]
    Alignment {
        found: String,
        least: u64,
        most: u64,
    },
    #[error("tensor {tensor} is there twice")]
    DuplicateTensor { tensor: String },
    #[error("tensor {tensor} has {dimensions} dimensions (1 to 4 are supported)")]
    Dimensions { tensor: String, dimensions: u32 },
    #[error("tensor {tensor} has a dimension of 0: {dims:?}")]
    ZeroDimension { tensor: String, dims: Vec<u64> },
    #[error("tensor {tensor} is too large: {dims:?}")]
    TooLarge { tensor: String, dims: Vec<u64> },
    #[error("tensor {tensor}: rows of {row} elements are no whole {ty} blocks of {block}")]
    PartialBlock {
        tensor: String,
        row: u64,
        ty: &'static str,
        block: usize,
    },
    #[error("tensor {tensor}: offset {offset} is no multiple of the alignment {alignment}")]
    Misaligned {
        tensor: String,
        offset: u64,
        alignment: u64,
    },
    #[error(
        "tensor {tensor} would end at byte {end}, but the file has only {length} bytes: it is \
         truncated, or its tensor table is wrong"
    )]
    OutsideFile {
        tensor: String,
        end: u64,
        length: u64,
    },
    #[error("tensors {first} and {second} overlap")]
    Overlap { first: String, second: String },
}
