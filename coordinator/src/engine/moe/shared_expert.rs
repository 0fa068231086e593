use ds4_common::expert::swiglu;
use rayon::prelude::*;

use crate::engine::EngineError;
use crate::engine::compute::Compute;
use crate::engine::operand::Operand;
use crate::engine::weights::FfnWeights;

/// Values of one task between the products.
const PART: usize = 4096;

/// Buffers of the shared expert, `tokens x width` each.
#[derive(Debug, Default)]
pub(crate) struct SharedScratch {
    gate: Vec<f32>,
    up: Vec<f32>,
    inner: Operand,
}

/// The expert that every token passes: out = down · (silu(gate · x) ⊙ (up · x)).
pub(crate) fn shared_expert(
    compute: Compute,
    weights: &FfnWeights,
    clamp: f32,
    input: &mut Operand,
    scratch: &mut SharedScratch,
    out: &mut Vec<f32>,
) -> Result<(), EngineError> {
    compute.linears(
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
        .par_chunks_mut(PART)
        .zip(scratch.gate.par_chunks(PART))
        .zip(scratch.up.par_chunks(PART))
        .for_each(|((inner, gate), up)| {
            inner.copy_from_slice(gate);
            compute.kernels.vectorised(|| swiglu(inner, up, clamp, 1.0));
        });
    compute.linear(&weights.shared_down, &mut scratch.inner, out)
}
