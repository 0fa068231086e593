//! Small tensors, read as floats.

use super::ModelError;
use crate::gguf::Tensor;
use crate::quant::dequantize_row;

/// All values of a tensor of any type as f32, in storage order. Meant for the small tensors that
/// are read once when a model is loaded (norms, scales, biases, sinks).
///
/// # Errors
/// A value is infinite or NaN.
pub fn read_floats(tensor: &Tensor) -> Result<Vec<f32>, ModelError> {
    // A tensor's bytes are whole blocks, so the count follows from them.
    let blocks = tensor.bytes().len() / tensor.ty().block_bytes();
    let mut out = vec![0.0; blocks * tensor.ty().block_elements()];
    dequantize_row(tensor.ty(), tensor.bytes(), &mut out);
    match out.iter().position(|v| !v.is_finite()) {
        None => Ok(out),
        Some(index) => Err(ModelError::NotFinite {
            file: tensor.file().to_path_buf(),
            tensor: tensor.name().to_owned(),
            index,
            value: out[index],
        }),
    }
}
