use half::f16;
use half::slice::HalfFloatSliceExt;

/// A growing list of float rows of one width, stored as f16 when they were rounded to it.
#[derive(Debug)]
pub(crate) struct Rows {
    width: usize,
    store: Store,
}

#[derive(Debug)]
enum Store {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Rows {
    pub(crate) fn new(width: usize, half: bool) -> Self {
        let store = if half {
            Store::F16(Vec::new())
        } else {
            Store::F32(Vec::new())
        };
        Rows { width, store }
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
        match &self.store {
            Store::F16(v) => size_of_val(v.as_slice()),
            Store::F32(v) => size_of_val(v.as_slice()),
        }
    }

    pub(crate) fn len(&self) -> usize {
        let elements = match &self.store {
            Store::F16(v) => v.len(),
            Store::F32(v) => v.len(),
        };
        elements / self.width
    }

    /// Appends a row, rounding it to f16 where rows are stored so.
    pub(crate) fn push(&mut self, row: &[f32]) {
        debug_assert_eq!(row.len(), self.width);
        match &mut self.store {
            Store::F16(v) => {
                let start = v.len();
                v.resize(start + row.len(), f16::ZERO);
                v[start..].convert_from_f32_slice(row);
            }
            Store::F32(v) => v.extend_from_slice(row),
        }
    }

    /// Copies rows `first..first + out.len() / width` to `out`.
    pub(crate) fn read(&self, first: usize, out: &mut [f32]) {
        let start = first * self.width;
        match &self.store {
            Store::F16(v) => v[start..start + out.len()].convert_to_f32_slice(out),
            Store::F32(v) => out.copy_from_slice(&v[start..start + out.len()]),
        }
    }

    /// Gives memory back that a large chunk needed, down to room for `rows`.
    pub(crate) fn shrink_to(&mut self, rows: usize) {
        let elements = rows * self.width;
        match &mut self.store {
            Store::F16(v) => v.shrink_to(elements),
            Store::F32(v) => v.shrink_to(elements),
        }
    }

    pub(crate) fn drop_front(&mut self, rows: usize) {
        let elements = rows * self.width;
        match &mut self.store {
            Store::F16(v) => drop(v.drain(..elements)),
            Store::F32(v) => drop(v.drain(..elements)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_stored() {
        for half in [true, false] {
            let mut rows = Rows::new(3, half);
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
