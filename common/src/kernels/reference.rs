//! Products that tests, benches and fuzzing compare with: the same results by the plainest way.

use std::ops::Range;

use super::instruction_set::InstructionSet;
use super::loops::SCRATCH;
use super::loops::rows::{self, Tokens};
use super::{ActRow, Activations, Isa, Kernels, Matrix, Product, with_kernel};

#[doc(hidden)]
impl Kernels {
    /// `a · b`.
    ///
    /// # Panics
    /// The lengths differ.
    #[must_use]
    pub fn dot_f32(self, a: &[f32], b: &[f32]) -> f32 {
        let mut out = [0.0];
        self.dots_f32(a, &[b], &mut out);
        out[0]
    }

    /// `out[i] = a · bs[i]`, each with the bits of [`Kernels::dot_f32`].
    ///
    /// # Panics
    /// The lengths differ.
    pub fn dots_f32(self, a: &[f32], bs: &[&[f32]], out: &mut [f32]) {
        assert_eq!(bs.len(), out.len(), "dot products and places for them");
        assert!(
            bs.iter().all(|b| b.len() == a.len()),
            "lengths of a dot product"
        );
        with_kernel!(self, k => k.dots_f32(a, bs, out));
    }

    /// `y += factors[i] * xs[i]` for each `i` in turn, elementwise and unfused.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn add_scaled(self, factors: &[f32], xs: &[&[f32]], y: &mut [f32]) {
        assert_eq!(
            factors.len(),
            xs.len(),
            "rows and factors of a scaled addition"
        );
        assert!(
            xs.iter().all(|x| x.len() == y.len()),
            "lengths of a scaled addition"
        );
        with_kernel!(self, k => k.add_scaled(factors, xs, y));
    }

    /// As [`Kernels::multiply_rows`], but always row by row, and row by row in the output:
    /// `out[(r - rows.start) * xs.len() + t] = w[r] · xs[t]`.
    ///
    /// # Panics
    /// As [`Kernels::multiply_rows`].
    pub fn multiply_row_by_row(
        self,
        w: &Matrix<'_>,
        rows: Range<usize>,
        xs: &[ActRow<'_>],
        out: &mut [f32],
    ) {
        let range = w.row_range(rows);
        SCRATCH.with_borrow_mut(|scratch| {
            let buffer = &mut scratch.rows;
            with_kernel!(self, k => rows::run(k, &range, Tokens::Rows(xs), buffer, out));
        });
    }

    /// [`Kernels::matmul_all`] of one product: `out[t * w.rows() + r] = w[r] · x[t]`.
    ///
    /// # Panics
    /// As [`Kernels::matmul_all`].
    pub fn matmul(self, w: &Matrix<'_>, x: &Activations, out: &mut [f32]) {
        self.matmul_all(&mut [Product::new(*w, x, out)]);
    }
}
