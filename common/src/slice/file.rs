//! A complete slice, mapped.

use std::path::{Path, PathBuf};

use super::head::SliceHead;
use super::tensors::SliceTensor;
use super::{SliceError, keys};
use crate::gguf::{GgufError, GgufModel, Tensor};

/// A slice whose head is sound; its tensors are checked by [`super::verify`] alone.
#[derive(Clone, Debug)]
pub struct Slice {
    head: SliceHead,
    gguf: GgufModel,
}

impl Slice {
    /// Maps a slice; takes no longer for a large one.
    ///
    /// # Errors
    /// It is not a slice, contradicts itself, is incomplete, or is shorter than its head states.
    pub fn open(path: &Path) -> Result<Self, SliceError> {
        Self::of(GgufModel::open(path)?)
    }

    /// As [`Self::open`], for a file that is mapped already.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn of(gguf: GgufModel) -> Result<Self, SliceError> {
        let head = SliceHead::of_file(&gguf)?;
        head.check_complete()?;
        Ok(Slice { head, gguf })
    }

    /// Whether an opened model file is a slice, of whatever version.
    #[must_use]
    pub fn is_slice(gguf: &GgufModel) -> bool {
        gguf.metadata().contains(keys::VERSION)
    }

    /// What the slice says about itself, checked.
    #[must_use]
    pub fn head(&self) -> &SliceHead {
        &self.head
    }

    /// The slice's file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.gguf.name().to_path_buf()
    }

    /// The mapped data of one of the head's tensors.
    ///
    /// # Errors
    /// The tensor is of another slice.
    pub fn tensor(&self, tensor: &SliceTensor) -> Result<Tensor, GgufError> {
        self.gguf.require(&tensor.name)
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.head.tensors().iter().map(|t| t.bytes).sum()
    }
}
