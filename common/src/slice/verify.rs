//! Compares the data of a slice with its hashes.

use std::path::Path;

use blake3::Hash;

use super::SliceError;
use super::copy::hash_of;
use super::file::Slice;

/// A tensor whose data is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashMismatch {
    /// Name of the tensor.
    pub tensor: String,
    /// Hash in the head.
    pub stated: Hash,
    /// Hash of the data.
    pub found: Hash,
}

impl HashMismatch {
    /// The error that refuses a slice for this.
    #[must_use]
    pub fn error(self, file: &Path) -> SliceError {
        SliceError::TensorHash {
            file: file.to_path_buf(),
            tensor: self.tensor,
            stated: self.stated,
            found: self.found,
        }
    }
}

/// Reads all of a slice and returns the tensors that do not match their hashes. `read` is called
/// with the number of bytes of each step.
///
/// # Errors
/// The file cannot be read.
pub fn verify(slice: &Slice, read: &mut dyn FnMut(u64)) -> Result<Vec<HashMismatch>, SliceError> {
    let mut mismatches = Vec::new();
    for tensor in slice.head().tensors() {
        let data = slice.tensor(tensor)?;
        // Through the file handle, so that no page of the mapping becomes resident.
        let found = hash_of(tensor.bytes, |out, at| data.read_at(out, at), read);
        let found = found.map_err(|problem| SliceError::Io {
            file: slice.path(),
            action: "cannot be read",
            problem,
        })?;
        // A complete slice states all hashes.
        if let Some(stated) = tensor.hash
            && stated != found
        {
            mismatches.push(HashMismatch {
                tensor: tensor.name.clone(),
                stated,
                found,
            });
        }
    }
    Ok(mismatches)
}
