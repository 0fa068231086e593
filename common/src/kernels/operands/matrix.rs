//! A weight matrix over borrowed bytes.

use std::ops::Range;

use crate::quant::{GgmlType, Layout, PANEL_ROWS, PanelBlock};
use crate::quant::{block_of_row, panel_blocks};

/// A matrix whose shape does not fit its type or its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// Rows are stored in whole blocks.
    #[error("{cols} columns of {ty} are not whole blocks of {}", ty.block_elements())]
    PartialBlock {
        /// Type of the weights.
        ty: GgmlType,
        /// Weights of a row.
        cols: usize,
    },
    /// The bytes of the matrix exceed what this machine can address.
    #[error("a {ty} matrix of {rows} x {cols} is too large")]
    TooLarge {
        /// Type of the weights.
        ty: GgmlType,
        /// Rows of the matrix.
        rows: usize,
        /// Weights of a row.
        cols: usize,
    },
    /// The bytes are not those of the shape.
    #[error("a {ty} matrix of {rows} x {cols} takes {expected} bytes, not {found}")]
    Bytes {
        /// Type of the weights.
        ty: GgmlType,
        /// Rows of the matrix.
        rows: usize,
        /// Weights of a row.
        cols: usize,
        /// Bytes of the shape.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// Panels hold whole groups of rows of one type.
    #[error("a {ty} matrix of {rows} rows cannot be stored in panels of {PANEL_ROWS} Q4_K rows")]
    Panels {
        /// Type of the weights.
        ty: GgmlType,
        /// Rows of the matrix.
        rows: usize,
    },
    /// A strip of columns must start and end on a block of the matrix.
    #[error("columns {start}..{end} of a {ty} matrix with {cols} columns are not whole blocks")]
    Strip {
        /// Type of the weights.
        ty: GgmlType,
        /// Weights of a row.
        cols: usize,
        /// First column of the strip.
        start: usize,
        /// The column after its last one.
        end: usize,
    },
}

/// `rows` rows of `cols` weights of one type, row by row or in panels. `Copy`: it borrows the bytes,
/// which usually are a mapped file.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    ty: GgmlType,
    rows: usize,
    cols: usize,
    layout: Layout,
    /// Bytes from the start of a row to that of the next, taken over whole panels.
    stride: usize,
    /// Bytes of a row; less than `stride` in a strip.
    row_bytes: usize,
    /// Holds `(rows - n) * stride + n * row_bytes` bytes or more, with the `n` rows of a panel, or
    /// 1.
    data: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// A matrix over exactly the bytes of its rows.
    ///
    /// # Errors
    /// `cols` are not whole blocks, or `data` does not have the bytes of the shape.
    pub fn new(ty: GgmlType, rows: usize, cols: usize, data: &'a [u8]) -> Result<Self, ShapeError> {
        if !cols.is_multiple_of(ty.block_elements()) {
            return Err(ShapeError::PartialBlock { ty, cols });
        }
        let too_large = ShapeError::TooLarge { ty, rows, cols };
        let blocks = cols / ty.block_elements();
        let row_bytes = blocks.checked_mul(ty.block_bytes()).ok_or(too_large)?;
        let expected = row_bytes.checked_mul(rows).ok_or(too_large)?;
        if data.len() != expected {
            return Err(ShapeError::Bytes {
                ty,
                rows,
                cols,
                expected,
                found: data.len(),
            });
        }
        Ok(Self {
            ty,
            rows,
            cols,
            layout: Layout::Plain,
            stride: row_bytes,
            row_bytes,
            data,
        })
    }

    /// As [`Matrix::new`], with the rows stored as `layout` says.
    ///
    /// # Errors
    /// As [`Matrix::new`]; rows of this type and number cannot be stored so.
    pub fn stored(
        layout: Layout,
        ty: GgmlType,
        rows: usize,
        cols: usize,
        data: &'a [u8],
    ) -> Result<Self, ShapeError> {
        if !layout.fits(ty, rows as u64) {
            return Err(ShapeError::Panels { ty, rows });
        }
        let plain = Self::new(ty, rows, cols, data)?;
        Ok(Self { layout, ..plain })
    }

    /// Order in which the rows are stored.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Type of the weights.
    #[must_use]
    pub fn ty(&self) -> GgmlType {
        self.ty
    }

    /// Rows, one a result for each activation.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Weights of a row, as many as each activation has values.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of one row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The bytes of row `r`.
    ///
    /// # Panics
    /// `r` is not a row, or it lies in a panel.
    #[must_use]
    pub fn row(&self, r: usize) -> &'a [u8] {
        assert!(r < self.rows, "row {r} of {}", self.rows);
        assert!(self.layout == Layout::Plain, "a row of {self:?}");
        &self.data[r * self.stride..][..self.row_bytes]
    }

    /// Calls `f` with the bytes of row `r`: as they lie, or a copy of what a panel has of them.
    ///
    /// # Panics
    /// `r` is not a row.
    pub(in crate::kernels) fn with_row<R>(&self, r: usize, f: impl FnOnce(&[u8]) -> R) -> R {
        match self.layout {
            Layout::Plain => f(self.row(r)),
            Layout::Panels => {
                let panel = self.panel(r / PANEL_ROWS).iter();
                let row: Vec<u8> = panel
                    .flat_map(|block| block_of_row(block, r % PANEL_ROWS))
                    .collect();
                f(&row)
            }
        }
    }

    /// The blocks of the rows from `p * PANEL_ROWS` on.
    ///
    /// # Panics
    /// There is no such panel.
    pub(in crate::kernels) fn panel(&self, p: usize) -> &'a [PanelBlock] {
        assert!(
            self.layout == Layout::Panels && p < self.rows / PANEL_ROWS,
            "panel {p} of {self:?}"
        );
        let bytes = &self.data[p * self.panel_stride()..][..PANEL_ROWS * self.row_bytes];
        panel_blocks(bytes)
    }

    /// The bytes of block `block`, of `N` bytes, of the row `first`, and the distance from there to
    /// those of each of the `count - 1` rows below, which are checked to be there.
    ///
    /// # Panics
    /// They are not.
    pub(in crate::kernels) fn blocks_below<const N: usize>(
        &self,
        first: usize,
        count: usize,
        block: usize,
    ) -> (&'a [u8; N], usize) {
        assert!(
            count > 0
                && self.layout == Layout::Plain
                && first + count <= self.rows
                && (block + 1) * N <= self.row_bytes,
            "block {block} of {count} rows from {first} on in {self:?}"
        );
        let last = (first + count - 1) * self.stride + block * N;
        assert!(last + N <= self.data.len(), "bytes of {self:?}");
        let start = &self.data[first * self.stride + block * N..];
        (&start.as_chunks().0[0], self.stride)
    }

    /// Whether a row ends where the next one starts.
    pub(in crate::kernels) fn is_dense(&self) -> bool {
        self.stride == self.row_bytes
    }

    /// Bytes from the start of a panel to that of the next.
    pub(in crate::kernels) fn panel_stride(&self) -> usize {
        PANEL_ROWS * self.stride
    }

    /// Where the first row starts.
    pub(in crate::kernels) fn start(&self) -> *const u8 {
        self.data.as_ptr()
    }

    /// The rows `range` as a matrix.
    ///
    /// # Panics
    /// `range` is not within the rows, or does not start and end with a panel.
    #[must_use]
    pub fn row_range(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.rows,
            "rows {range:?} of {}",
            self.rows
        );
        assert!(
            self.layout == Layout::Plain
                || range.start.is_multiple_of(PANEL_ROWS) && range.end.is_multiple_of(PANEL_ROWS),
            "rows {range:?} of panels"
        );
        let data = if range.is_empty() {
            &[]
        } else {
            &self.data[range.start * self.stride..]
        };
        Self {
            rows: range.len(),
            data,
            ..*self
        }
    }

    /// The columns `range` of every row as a matrix with the same distance between rows.
    ///
    /// # Errors
    /// `range` is not within the columns, or does not start and end on a block.
    pub fn column_strip(&self, range: Range<usize>) -> Result<Self, ShapeError> {
        let block = self.ty.block_elements();
        let inside = range.start <= range.end && range.end <= self.cols;
        if !inside || !range.start.is_multiple_of(block) || !range.end.is_multiple_of(block) {
            let (start, end) = (range.start, range.end);
            return Err(ShapeError::Strip {
                ty: self.ty,
                cols: self.cols,
                start,
                end,
            });
        }
        let bytes = |cols: usize| cols / block * self.ty.block_bytes();
        let skipped = match self.layout {
            Layout::Plain => bytes(range.start),
            Layout::Panels => PANEL_ROWS * bytes(range.start),
        };
        let skipped = skipped.min(self.data.len());
        let data = &self.data[skipped..];
        Ok(Self {
            cols: range.len(),
            row_bytes: bytes(range.len()),
            data,
            ..*self
        })
    }
}

impl std::fmt::Debug for Matrix<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({} {} x {}", self.ty, self.rows, self.cols)?;
        match self.layout {
            Layout::Plain => f.write_str(")"),
            Layout::Panels => f.write_str(" in panels)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_must_be_those_of_the_shape() {
        let data = [0; 3 * 68];
        assert!(Matrix::new(GgmlType::Q8_0, 3, 64, &data).is_ok());
        let short = Matrix::new(GgmlType::Q8_0, 3, 64, &data[1..]).unwrap_err();
        assert_eq!(
            short.to_string(),
            "a Q8_0 matrix of 3 x 64 takes 204 bytes, not 203"
        );
        let ragged = Matrix::new(GgmlType::Q8_0, 3, 65, &data);
        assert_eq!(
            ragged.unwrap_err(),
            ShapeError::PartialBlock {
                ty: GgmlType::Q8_0,
                cols: 65
            }
        );
        for (rows, cols) in [(usize::MAX, 64), (3, usize::MAX - 31)] {
            let huge = Matrix::new(GgmlType::F32, rows, cols, &data);
            assert!(matches!(huge, Err(ShapeError::TooLarge { .. })));
        }
    }

    #[test]
    fn strips_and_ranges_show_the_same_bytes() {
        let data: Vec<u8> = (0..4 * 3 * 34).map(|i| (i % 251) as u8).collect();
        let matrix = Matrix::new(GgmlType::Q8_0, 4, 96, &data).unwrap();
        let strip = matrix.column_strip(32..96).unwrap().row_range(1..4);
        assert_eq!((strip.rows(), strip.cols()), (3, 64));
        assert_eq!(strip.row(2), &matrix.row(3)[34..]);
        assert_eq!(
            strip.column_strip(32..64).unwrap().row(0),
            &matrix.row(1)[68..]
        );
        assert_eq!(matrix.column_strip(96..96).unwrap().row(3), &[] as &[u8]);
        assert_eq!(matrix.row_range(4..4).rows(), 0);
        #[expect(clippy::reversed_empty_ranges)]
        for bad in [0..33, 16..64, 64..128, 64..32] {
            assert!(matrix.column_strip(bad).is_err());
        }
    }
}
