//! Checks what a slice holds against its own hashes.

use std::path::Path;

use blake3::Hash;

use super::SliceError;
use super::copy::hash_of;
use super::file::Slice;

/// A tensor that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub tensor: String,
    pub stated: Hash,
    pub found: Hash,
}

impl Fault {
    /// As the error of a slice that may not have any.
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

/// Reads all of a slice and gives the tensors that are wrong. `read` is told the bytes that each
/// step has read.
///
/// # Errors
/// The file cannot be read.
pub fn verify(slice: &Slice, read: &mut dyn FnMut(u64)) -> Result<Vec<Fault>, SliceError> {
    let mut faults = Vec::new();
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
            faults.push(Fault {
                tensor: tensor.name.clone(),
                stated,
                found,
            });
        }
    }
    Ok(faults)
}
