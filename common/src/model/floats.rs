use crate::gguf::Tensor;
use crate::quant::dequantize_row;

/// All values of a tensor of any type as f32, for small tensors that are read once (norms, biases,
/// position biases). The mapped bytes stay as they are.
#[must_use]
pub fn read_floats(tensor: &Tensor) -> Vec<f32> {
    // A mapped tensor's bytes are whole blocks, so the count follows from them.
    let blocks = tensor.bytes().len() / tensor.ty().block_bytes();
    let mut out = vec![0.0; blocks * tensor.ty().block_elements()];
    dequantize_row(tensor.ty(), tensor.bytes(), &mut out);
    out
}
