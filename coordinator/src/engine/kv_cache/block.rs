//! Blocks of rows, stored as f16 where the numerics round them to it, and the count of their bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use half::f16;
use half::slice::HalfFloatSliceExt;

/// How the values of a row are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowStorage {
    /// As half floats.
    F16,
    /// As they are.
    F32,
}

impl RowStorage {
    /// Bytes of a row of `width` values.
    pub(super) fn row_bytes(self, width: usize) -> usize {
        let value = match self {
            RowStorage::F16 => size_of::<f16>(),
            RowStorage::F32 => size_of::<f32>(),
        };
        width * value
    }
}

/// The bytes of all blocks of an engine that anyone holds, each counted once.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlockMeter(Arc<AtomicU64>);

impl BlockMeter {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Room for a fixed number of rows, of which the first are filled. It is counted from its
/// allocation until its last holder drops it. A clone has the same room.
#[derive(Debug)]
pub(super) struct Block {
    values: BlockValues,
    /// Bytes of the room.
    bytes: u64,
    meter: BlockMeter,
}

#[derive(Debug)]
enum BlockValues {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Block {
    /// An empty block with room for `elements` values.
    pub(super) fn new(storage: RowStorage, elements: usize, meter: &BlockMeter) -> Self {
        let values = match storage {
            RowStorage::F16 => BlockValues::F16(Vec::with_capacity(elements)),
            RowStorage::F32 => BlockValues::F32(Vec::with_capacity(elements)),
        };
        Block::counted(values, storage.row_bytes(elements) as u64, meter)
    }

    fn counted(values: BlockValues, bytes: u64, meter: &BlockMeter) -> Self {
        meter.0.fetch_add(bytes, Ordering::Relaxed);
        Block {
            values,
            bytes,
            meter: meter.clone(),
        }
    }

    /// Appends values, rounded to f16 where they are stored so. The caller keeps within the room.
    pub(super) fn extend(&mut self, values: &[f32]) {
        match &mut self.values {
            BlockValues::F16(v) => {
                let start = v.len();
                v.resize(start + values.len(), f16::ZERO);
                v[start..].convert_from_f32_slice(values);
            }
            BlockValues::F32(v) => v.extend_from_slice(values),
        }
    }

    /// Forgets all values but the first `elements`.
    pub(super) fn truncate(&mut self, elements: usize) {
        match &mut self.values {
            BlockValues::F16(v) => v.truncate(elements),
            BlockValues::F32(v) => v.truncate(elements),
        }
    }

    /// Copies the values from `at` on to `out`.
    #[inline]
    pub(super) fn read(&self, at: usize, out: &mut [f32]) {
        match &self.values {
            BlockValues::F16(v) => v[at..at + out.len()].convert_to_f32_slice(out),
            BlockValues::F32(v) => out.copy_from_slice(&v[at..at + out.len()]),
        }
    }

    /// The `count` values from `at` on, or `None` where they are stored as f16.
    pub(super) fn stored(&self, at: usize, count: usize) -> Option<&[f32]> {
        match &self.values {
            BlockValues::F16(_) => None,
            BlockValues::F32(v) => v.get(at..at + count),
        }
    }
}

impl Clone for Block {
    fn clone(&self) -> Self {
        /// A plain clone would have no room beyond the values.
        fn copy<T: Copy>(from: &Vec<T>) -> Vec<T> {
            let mut values = Vec::with_capacity(from.capacity());
            values.extend_from_slice(from);
            values
        }
        let values = match &self.values {
            BlockValues::F16(v) => BlockValues::F16(copy(v)),
            BlockValues::F32(v) => BlockValues::F32(copy(v)),
        };
        Block::counted(values, self.bytes, &self.meter)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.meter.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
