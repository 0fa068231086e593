//! Weights are foreign bytes: whatever they hold, every instruction set gives the bits of scalar.
#![no_main]

use ds4_common::kernels::{ActRow, Activations, Kernels, Matrix};
use ds4_common::quant::{ActivationFormat, GgmlType};
use libfuzzer_sys::fuzz_target;

const COLS: usize = 512;
const TOKENS: usize = 3;

/// The bytes over and over, since random input is short.
fn repeated(bytes: &[u8], count: usize) -> Vec<u8> {
    bytes.iter().copied().cycle().take(count).collect()
}

fuzz_target!(|data: &[u8]| {
    let [ty, split, rest @ ..] = data else { return };
    if rest.is_empty() {
        return;
    }
    let ty = GgmlType::ALL[usize::from(*ty) % GgmlType::ALL.len()];
    let (weights, values) = rest.split_at(usize::from(*split).min(rest.len() - 1));
    let rows = if weights.is_empty() { 1 } else { 2 };
    let row_bytes = ty.row_bytes(COLS as u64).expect("whole blocks") as usize;
    let source = if weights.is_empty() { values } else { weights };
    let bytes = repeated(source, rows * row_bytes);
    let matrix = Matrix::new(ty, rows, COLS, &bytes).expect("exact bytes");
    let floats: Vec<f32> = repeated(values, TOKENS * COLS * 4)
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    for format in [ActivationFormat::F32, ty.activation_format()] {
        let mut x = Activations::new();
        x.set(format, COLS, &floats);
        let tokens: Vec<ActRow<'_>> = (0..TOKENS).map(|t| x.row(t)).collect();
        let mut results = Kernels::available().into_iter().map(|kernels| {
            let mut out = vec![0.0; rows * TOKENS];
            kernels.tile(&matrix, 0..rows, &tokens, &mut out);
            (kernels.name(), out)
        });
        let (_, scalar) = results.next().expect("always there");
        for (name, found) in results {
            for (a, b) in found.iter().zip(&scalar) {
                // Which NaN it is, nobody promises.
                let same = a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                assert!(same, "{name} {ty} {format:?}: {a} is not {b}");
            }
        }
    }
});
