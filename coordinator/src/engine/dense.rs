//! Products of activations with dense weight matrices: all matrices of the model except the routed
//! experts. This is the only door through which the forward pass multiplies with them; rows of the
//! embedding are looked up, not multiplied. Another implementation, on a graphics card for
//! instance, must give the bits of [`Kernels`], whose sums have a fixed order.
//!
//! A matrix has one row per output and one column per input ([`Linear`]), an operand one row per
//! token ([`Operand`]). Results land in plain `f32` buffers, row-major, one row per token.

use ds4_common::kernels::{Kernels, Product};

use super::error::EngineError;
use super::numerics::Numerics;
use super::operand::Operand;
use super::weights::Linear;

/// Which kernels run and what they round: the same for every product of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DenseOps {
    pub(crate) kernels: Kernels,
    pub(crate) numerics: Numerics,
}

impl DenseOps {
    /// `out = x · Wᵀ`, `(x.rows() x w.rows())`, on all threads of the current pool.
    pub(crate) fn linear(
        self,
        w: &Linear,
        x: &mut Operand,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        self.linears(x, vec![(w, out)])
    }

    /// Multiplies one operand with several matrices at once, each into its own
    /// `(x.rows() x w.rows())` buffer: the threads share all of the work, not one matrix at a time.
    pub(crate) fn linears(
        self,
        x: &mut Operand,
        jobs: Vec<(&Linear, &mut Vec<f32>)>,
    ) -> Result<(), EngineError> {
        let format = |w: &Linear| self.numerics.activation_format(w.ty());
        for (w, _) in &jobs {
            x.prepare(self.kernels, format(w));
        }
        let mut products = Vec::with_capacity(jobs.len());
        for (w, out) in jobs {
            out.resize(x.rows() * w.rows(), 0.0);
            products.push(Product::new(w.matrix()?, x.prepared(format(w)), out));
        }
        self.kernels.matmul_all(&mut products);
        Ok(())
    }

    /// Splits the rows of `w` and the columns of `x` into `groups` equal parts and multiplies each
    /// part with its counterpart, into `out` `(x.rows() x w.rows())`.
    pub(crate) fn grouped(
        self,
        w: &Linear,
        groups: usize,
        x: &mut Operand,
        out: &mut [f32],
    ) -> Result<(), EngineError> {
        let x = x.in_format(self.kernels, self.numerics.activation_format(w.ty()));
        let product = Product::grouped(w.matrix()?, groups, x, out);
        self.kernels.matmul_all(&mut [product]);
        Ok(())
    }
}
