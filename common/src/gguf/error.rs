//! Errors of reading GGUF files: of a model's files, and inside of one file.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::MetadataError;
use crate::quant::UnknownType;

/// Why a model file, or a set of them, cannot be read. Every message names the file.
#[derive(Debug, Error)]
pub enum GgufError {
    /// The operating system failed to open, map or read a file.
    #[error("cannot read {}: {problem}", file.display())]
    Io {
        /// File that the message names.
        file: PathBuf,
        /// Its error.
        problem: io::Error,
    },
    /// A folder, pipe or device was given.
    #[error("{} is not a regular file", file.display())]
    NotAFile {
        /// File that the message names.
        file: PathBuf,
    },
    /// The file has no bytes.
    #[error("{} is empty", file.display())]
    Empty {
        /// File that the message names.
        file: PathBuf,
    },
    /// The bytes are not a valid GGUF file.
    #[error("{} is not a valid GGUF file: {problem}", file.display())]
    Format {
        /// File that the message names.
        file: PathBuf,
        /// What is wrong.
        problem: FormatError,
    },
    /// A key is missing or holds an unsupported value.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The list of files is empty.
    #[error("no model file given")]
    NoFiles,
    /// Two paths lead to one file.
    #[error("{} is given twice", file.display())]
    SameFileTwice {
        /// File that the message names.
        file: PathBuf,
    },
    /// A part of a split model has another name than such parts have.
    #[error(
        "{} is part {part} of {count} by its split.* keys, but its name does not end in \
         {expected:?}, so the other parts cannot be found",
        file.display()
    )]
    SplitName {
        /// File that the message names.
        file: PathBuf,
        /// Number of the part, from 1.
        part: u32,
        /// Parts of the model.
        count: u32,
        /// End of the name that a part of this number has.
        expected: String,
    },
    /// A part of a split model is numbered beyond their count.
    #[error("{}: split.no {no} is not below split.count {count}", file.display())]
    SplitNumber {
        /// File that the message names.
        file: PathBuf,
        /// Number of the part, from 0.
        no: u32,
        /// Parts of the model.
        count: u32,
    },
    /// A part of a split model does not exist.
    #[error("part {part} of {count} of the model is missing: {} does not exist", file.display())]
    MissingPart {
        /// File that the message names.
        file: PathBuf,
        /// Number of the part, from 1.
        part: u32,
        /// Parts of the model.
        count: u32,
    },
    /// A part of a split model is another part than its name says, or of another model.
    #[error(
        "{} should be part {part} of {count}, but its split.* keys say part {found_part} of \
         {found_count}",
        file.display()
    )]
    WrongPart {
        /// File that the message names.
        file: PathBuf,
        /// Number in the name, from 1.
        part: u32,
        /// Parts of the model.
        count: u32,
        /// Number in the keys, from 1.
        found_part: u32,
        /// Parts according to the keys.
        found_count: u32,
    },
    /// The parts of a split model hold more or fewer tensors than they state.
    #[error(
        "{}: split.tensors.count is {expected}, but the {parts} parts hold {found} tensors",
        file.display()
    )]
    TensorCount {
        /// File that the message names.
        file: PathBuf,
        /// Tensors that the file states for all parts.
        expected: u64,
        /// Tensors in all parts.
        found: u64,
        /// Parts of the model.
        parts: usize,
    },
    /// Two files hold a tensor of the same name.
    #[error("tensor {tensor} is in {} and in {}", first.display(), second.display())]
    DuplicateTensor {
        /// Name of the tensor.
        tensor: String,
        /// File that was read first.
        first: PathBuf,
        /// File that repeats the tensor.
        second: PathBuf,
    },
    /// Two files state different values of a key that describes the model.
    #[error(
        "{} and {} are not parts of one model: their values of {key} differ",
        first.display(),
        second.display()
    )]
    ShardsDisagree {
        /// The metadata key.
        key: String,
        /// File that was read first.
        first: PathBuf,
        /// File with another value.
        second: PathBuf,
    },
    /// A tensor that is needed does not exist.
    #[error("{} has no tensor {tensor}", file.display())]
    MissingTensor {
        /// File that the message names.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
    },
    /// A tensor that is needed has a type that this engine does not read.
    #[error("{}: tensor {tensor} cannot be used: {problem}", file.display())]
    UnsupportedTensor {
        /// File that the message names.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Its type.
        problem: UnknownType,
    },
}

/// What is wrong inside of one GGUF file. [`GgufError::Format`] adds which file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FormatError {
    /// The first four bytes are not those of a GGUF file.
    #[error("it does not start with the GGUF magic")]
    Magic,
    /// Another version than 2 and 3; holds that version.
    #[error("GGUF version {0} is not supported (2 and 3 are)")]
    Version(u32),
    /// The numbers are stored in the other byte order.
    #[error("it is big-endian; only little-endian files are supported")]
    BigEndian,
    /// The file ends inside of a field of its header.
    #[error("it is truncated: {what} at byte {offset} does not fit into the file's {length} bytes")]
    Truncated {
        /// The field.
        what: &'static str,
        /// Byte at which the field begins.
        offset: u64,
        /// Bytes of the file.
        length: u64,
    },
    /// A count promises more than the rest of the file can hold.
    #[error(
        "{what} is {count}, which takes at least {needed} bytes, but only {left} of the file's \
         {length} bytes follow: the file is truncated, or the count is wrong"
    )]
    TooFewBytes {
        /// What is counted.
        what: &'static str,
        /// The stated count.
        count: u64,
        /// Fewest bytes that so many take.
        needed: u64,
        /// Bytes that follow the count.
        left: u64,
        /// Bytes of the file.
        length: u64,
    },
    /// The header exceeds what this engine reads.
    #[error("its header is longer than {limit} bytes")]
    HeaderTooLong {
        /// Most bytes of a header.
        limit: u64,
    },
    /// A count exceeds what this engine reads.
    #[error("{what} is {count}, above the limit of {limit}")]
    Count {
        /// What is counted.
        what: &'static str,
        /// The stated count.
        count: u64,
        /// Largest count allowed.
        limit: u64,
    },
    /// A text is not valid UTF-8.
    #[error("{what} at byte {offset} is not UTF-8")]
    Utf8 {
        /// The text.
        what: &'static str,
        /// Byte at which the text begins.
        offset: u64,
    },
    /// A name would break a line of output.
    #[error("{what} at byte {offset} has a control character")]
    ControlCharacter {
        /// The name.
        what: &'static str,
        /// Byte at which the name begins.
        offset: u64,
    },
    /// A metadata value has a type without a meaning.
    #[error("key {key}: unknown value type {id}")]
    ValueType {
        /// The metadata key.
        key: String,
        /// Type id in the file.
        id: u32,
    },
    /// A boolean is neither 0 nor 1.
    #[error("key {key}: {byte} is not a boolean")]
    Bool {
        /// The metadata key.
        key: String,
        /// The stored byte.
        byte: u8,
    },
    /// Arrays contain arrays too many times over.
    #[error("key {key}: arrays are nested more than {limit} deep")]
    Nesting {
        /// The metadata key.
        key: String,
        /// Deepest nesting allowed.
        limit: usize,
    },
    /// A metadata key appears twice.
    #[error("key {key} appears twice")]
    DuplicateKey {
        /// The metadata key.
        key: String,
    },
    /// The alignment of tensor data is not one that GGUF allows.
    #[error(
        "general.alignment is {found}, but must be an unsigned integer and a power of two from \
         {least} to {most}"
    )]
    Alignment {
        /// The stated alignment, or the type of its value.
        found: String,
        /// Smallest alignment, in bytes.
        least: u64,
        /// Largest alignment, in bytes.
        most: u64,
    },
    /// A tensor name appears twice.
    #[error("tensor {tensor} appears twice")]
    DuplicateTensor {
        /// Name of the tensor.
        tensor: String,
    },
    /// A tensor has no dimensions or too many.
    #[error("tensor {tensor} has {dimensions} dimensions (1 to 4 are supported)")]
    Dimensions {
        /// Name of the tensor.
        tensor: String,
        /// Their number.
        dimensions: u32,
    },
    /// A tensor has no elements.
    #[error("tensor {tensor} has a dimension of 0: {dims:?}")]
    ZeroDimension {
        /// Name of the tensor.
        tensor: String,
        /// Its dimensions, fastest first.
        dims: Vec<u64>,
    },
    /// The size of a tensor overflows 64 bits.
    #[error("tensor {tensor} is too large: {dims:?}")]
    TooLarge {
        /// Name of the tensor.
        tensor: String,
        /// Its dimensions, fastest first.
        dims: Vec<u64>,
    },
    /// Rows of a tensor do not end with a block of its type.
    #[error("tensor {tensor}: rows of {row} elements are not whole {ty} blocks of {block}")]
    PartialBlock {
        /// Name of the tensor.
        tensor: String,
        /// Elements of a row.
        row: u64,
        /// Name of the type.
        ty: &'static str,
        /// Elements of a block.
        block: usize,
    },
    /// A tensor begins at an unaligned offset.
    #[error("tensor {tensor}: offset {offset} is not a multiple of the alignment {alignment}")]
    Misaligned {
        /// Name of the tensor.
        tensor: String,
        /// Its offset in the data section, in bytes.
        offset: u64,
        /// The alignment, in bytes.
        alignment: u64,
    },
    /// A tensor reaches beyond the end of the file.
    #[error(
        "tensor {tensor} would end at byte {end}, but the file has only {length} bytes: it is \
         truncated, or its tensor table is wrong"
    )]
    OutsideFile {
        /// Name of the tensor.
        tensor: String,
        /// Byte at which the tensor would end.
        end: u64,
        /// Bytes of the file.
        length: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors {first} and {second} overlap")]
    Overlap {
        /// The tensor that begins first.
        first: String,
        /// The tensor that begins inside of it.
        second: String,
    },
}
