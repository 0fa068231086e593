use ds4_common::expert::swiglu;

use crate::engine::EngineError;
use crate::engine::compute::Compute;
use crate::engine::operand::Operand;
use crate::engine::weights::FfnWeights;

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
    compute.linear(&weights.shared_gate, input, &mut scratch.gate)?;
    compute.linear(&weights.shared_up, input, &mut scratch.up)?;
    let inner = scratch.inner.values_mut(weights.shared_gate.rows(), input.rows());
    inner.copy_from_slice(&scratch.gate);
    swiglu(inner, &scratch.up, clamp, 1.0);
    compute.linear(&weights.shared_down, &mut scratch.inner, out)
}
