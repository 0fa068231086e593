//! The rows of a cache, stored as f16 where the numerics round them to it.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// A growing list of float rows of one width, `(len x width)`.
#[derive(Debug)]
pub(crate) struct CacheRows {
    width: usize,
    values: StoredValues,
}

#[derive(Debug)]
enum StoredValues {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl CacheRows {
    pub(crate) fn new(width: usize, half: bool) -> Self {
        let values = if half {
            StoredValues::F16(Vec::new())
        } else {
            StoredValues::F32(Vec::new())
        };
        CacheRows { width, values }
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(width: usize, half: bool) -> usize {
        width
            * if half {
                size_of::<f16>()
            } else {
                size_of::<f32>()
            }
    }

    /// Bytes of all rows held.
    pub(crate) fn bytes(&self) -> usize {
        match &self.values {
            StoredValues::F16(v) => size_of_val(v.as_slice()),
            StoredValues::F32(v) => size_of_val(v.as_slice()),
        }
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        let elements = match &self.values {
            StoredValues::F16(v) => v.len(),
            StoredValues::F32(v) => v.len(),
        };
        elements / self.width
    }

    /// Appends a row, rounded to f16 where rows are stored so.
    pub(crate) fn push(&mut self, row: &[f32]) {
        debug_assert_eq!(row.len(), self.width);
        match &mut self.values {
            StoredValues::F16(v) => {
                let start = v.len();
                v.resize(start + row.len(), f16::ZERO);
                v[start..].convert_from_f32_slice(row);
            }
            StoredValues::F32(v) => v.extend_from_slice(row),
        }
    }

    /// Copies rows `first..first + out.len() / width` to `out`.
    pub(crate) fn read(&self, first: usize, out: &mut [f32]) {
        let start = first * self.width;
        match &self.values {
            StoredValues::F16(v) => v[start..start + out.len()].convert_to_f32_slice(out),
            StoredValues::F32(v) => out.copy_from_slice(&v[start..start + out.len()]),
        }
    }

    /// Releases memory that a large chunk needed, down to a capacity of `rows` rows.
    pub(crate) fn shrink_to(&mut self, rows: usize) {
        let elements = rows * self.width;
        match &mut self.values {
            StoredValues::F16(v) => v.shrink_to(elements),
            StoredValues::F32(v) => v.shrink_to(elements),
        }
    }

    /// Removes the first `rows` rows.
    pub(crate) fn drop_front(&mut self, rows: usize) {
        let elements = rows * self.width;
        match &mut self.values {
            StoredValues::F16(v) => drop(v.drain(..elements)),
            StoredValues::F32(v) => drop(v.drain(..elements)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_stored() {
        for half in [true, false] {
            let mut rows = CacheRows::new(3, half);
            for i in 0..5 {
                rows.push(&[i as f32, -0.5, 1024.0]);
            }
            rows.drop_front(2);
            assert_eq!(rows.len(), 3);
            let mut out = [0.0; 6];
            rows.read(1, &mut out);
            assert_eq!(out, [3.0, -0.5, 1024.0, 4.0, -0.5, 1024.0]);
        }
    }
}
