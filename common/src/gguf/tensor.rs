//! Tensors of a mapped model file.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::mmap::Mapping;
use crate::quant::{GgmlType, UnknownType};

/// Where a tensor is and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name in the file.
    pub name: String,
    /// Fastest first: `[in, out]` is a matrix of `out` rows of `in` contiguous elements.
    pub dims: Vec<u64>,
    /// Type of the elements.
    pub ty: GgmlType,
    /// From the start of its file.
    pub offset: u64,
    /// Bytes of the data.
    pub bytes: u64,
    /// Index into the model's paths.
    pub file: usize,
}

/// A tensor of a type that this engine cannot read, which is an error only where it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedTensor {
    /// Name in the file.
    pub name: String,
    /// Fastest first.
    pub dims: Vec<u64>,
    /// Type id of the elements.
    pub ty: UnknownType,
    /// From the start of its file.
    pub offset: u64,
    /// Index into the model's paths.
    pub file: usize,
}

/// A tensor's data where the file is mapped. Cheap to clone; keeps its file mapped.
#[derive(Clone)]
pub struct Tensor {
    info: Arc<TensorInfo>,
    mapping: Arc<Mapping>,
    range: Range<usize>,
}

impl Tensor {
    /// `None` if the tensor is not inside of the mapping.
    pub(super) fn new(info: Arc<TensorInfo>, mapping: Arc<Mapping>) -> Option<Self> {
        let start = usize::try_from(info.offset).ok()?;
        let end = start.checked_add(usize::try_from(info.bytes).ok()?)?;
        mapping.bytes().get(start..end)?;
        Some(Self {
            info,
            mapping,
            range: start..end,
        })
    }

    /// Its entry in the tensor table.
    #[must_use]
    pub fn info(&self) -> &TensorInfo {
        &self.info
    }

    /// Name in the file.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// The file that holds it.
    #[must_use]
    pub fn file(&self) -> &Path {
        self.mapping.path()
    }

    /// Fastest first.
    #[must_use]
    pub fn dims(&self) -> &[u64] {
        &self.info.dims
    }

    /// Type of the elements.
    #[must_use]
    pub fn ty(&self) -> GgmlType {
        self.info.ty
    }

    /// The mapped data; touching it makes its pages resident.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.mapping.bytes()[self.range.clone()]
    }

    /// Reads data from `offset` (inside of the tensor) on through the file handle, so that no page
    /// of the mapping becomes resident.
    ///
    /// # Errors
    /// `out` would reach beyond the tensor, or the file cannot be read.
    pub fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.info.bytes) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "range outside of the tensor",
            ));
        }
        // The tensor lies inside of the file, so the sum cannot overflow.
        self.mapping.read_exact_at(out, self.info.offset + offset)
    }

    /// Prefetches `range` of the data: tells the operating system to read it, and returns at once.
    ///
    /// # Errors
    /// The range is not inside of the tensor, or the operating system refuses.
    pub fn will_need(&self, range: Range<usize>) -> io::Result<()> {
        self.mapping.will_need(self.absolute(range)?)
    }

    /// Reads `range` of the data and maps its pages before it returns.
    ///
    /// # Errors
    /// The range is not inside of the tensor, or it cannot be read.
    pub fn populate(&self, range: Range<usize>) -> io::Result<()> {
        self.mapping.populate(self.absolute(range)?)
    }

    fn absolute(&self, range: Range<usize>) -> io::Result<Range<usize>> {
        if range.start > range.end || range.end > self.range.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "range outside of the tensor",
            ));
        }
        Ok(self.range.start + range.start..self.range.start + range.end)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}
