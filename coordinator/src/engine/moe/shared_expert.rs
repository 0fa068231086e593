//! The expert that every token passes, computed by the coordinator itself.

use ds4_common::expert::swiglu;
use rayon::prelude::*;

use crate::engine::dense::DenseOps;
use crate::engine::error::EngineError;
use crate::engine::operand::Operand;
use crate::engine::weights::FfnWeights;

/// Values that one task combines between the products.
const VALUES_PER_TASK: usize = 4096;

/// Buffers of the shared expert, `(tokens x width)` each.
#[derive(Debug, Default)]
pub(crate) struct SharedScratch {
    gate: Vec<f32>,
    up: Vec<f32>,
    inner: Operand,
}

/// `out = down · (silu(gate · x) ⊙ (up · x))`, `(tokens x hidden)`.
pub(crate) fn shared_expert(
    dense: DenseOps,
    weights: &FfnWeights,
    clamp: f32,
    input: &mut Operand,
    scratch: &mut SharedScratch,
    out: &mut Vec<f32>,
) -> Result<(), EngineError> {
    dense.linears(
        input,
        vec![
            (&weights.shared_gate, &mut scratch.gate),
            (&weights.shared_up, &mut scratch.up),
        ],
    )?;
    let inner = scratch
        .inner
        .values_mut(weights.shared_gate.rows(), input.rows());
    inner
        .par_chunks_mut(VALUES_PER_TASK)
        .zip(scratch.gate.par_chunks(VALUES_PER_TASK))
        .zip(scratch.up.par_chunks(VALUES_PER_TASK))
        .for_each(|((inner, gate), up)| {
            inner.copy_from_slice(gate);
            dense.kernels.vectorised(|| swiglu(inner, up, clamp, 1.0));
        });
    dense.linear(&weights.shared_down, &mut scratch.inner, out)
}
