use ds4_common::kernels::Kernels;

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
        out.resize(x.rows() * w.rows(), 0.0);
        let x = x.in_format(self.numerics.activation_format(w.ty()));
        self.kernels.matmul(&w.matrix()?, x, out);
        Ok(())
    }
}
