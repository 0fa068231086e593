use ds4_common::kernels::{Kernels, Product};

use super::operand::Operand;
use super::weights::Linear;
use super::{EngineError, Numerics};

/// Which kernels run and what they round: the same for every product of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compute {
    pub(crate) kernels: Kernels,
    pub(crate) numerics: Numerics,
}

impl Compute {
    /// out = x · Wᵀ, `x.rows() x w.rows()`, on all threads of the current pool.
    pub(crate) fn linear(
        self,
        w: &Linear,
        x: &mut Operand,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        self.linears(x, vec![(w, out)])
    }

    /// Several matrices times one operand, at once.
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

    /// Each of `groups` parts of `w`'s rows times its own part of `x`'s columns, into `out`
    /// (`x.rows() x w.rows()`).
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
