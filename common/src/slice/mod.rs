//! Slices: files that hold some tiles of a model's routed experts and no other weights.
//!
//! A slice is a valid GGUF v3 file. For each layer and each rectangle of tiles it holds three
//! tensors, packed, so that what is mapped is what is computed with:
//!
//! ```text
//! blk.3.ffn_gate_exps.e0-128.b2-4.weight   [hidden, features, experts]
//! blk.3.ffn_up_exps.e0-128.b2-4.weight     [hidden, features, experts]
//! blk.3.ffn_down_exps.e0-128.b2-4.weight   [features, hidden, experts]
//! ```
//!
//! Its keys are those that the model's hyper-parameters are read from, and `ds4.slice.*`: the
//! format's version, the layout of the tensors, the whole model's fingerprint, the tiles, the
//! BLAKE3 hash of every tensor, and a digest over all of these. While a slice is written, hashes
//! of tensors that are not written yet are zero, as is the digest until the end: an unfinished file
//! states by itself how far it is.

mod copy;
mod cut;
mod error;
mod fields;
mod file;
mod head;
mod keys;
mod name;
mod progress;
mod space;
mod tensors;
mod verify;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

pub use blake3::{Hash, Hasher};

pub use copy::copy_tensor;
pub use cut::{CutTensor, WholeModel};
pub use error::SliceError;
pub use file::Slice;
pub use head::SliceHead;
pub use name::{MAX_NAME, file_name};
pub use progress::ByteProgress;
pub use space::{allocated_bytes, ensure_room, free_bytes};
pub use tensors::{MAX_PARTS, Projection, SliceTensor};
pub use verify::{HashMismatch, verify};
pub use writer::{PART_SUFFIX, SliceWriter, part_path};
