//! Weights are foreign bytes: scales that are not numbers spoil their row and nothing else.

use super::*;
use crate::kernels::Activations;

/// More than two sixteens of rows, and some left over.
const ROWS: usize = 35;

/// A row of the first sixteen, of the second, and of the rest.
const SPOILT: [usize; 3] = [3, 21, 34];

const TOKENS: [usize; 4] = [1, 2, 5, 17];

/// Infinite, quiet NaN, signalling NaN.
const WILD: [u16; 4] = [0x7c00, 0xfc00, 0x7e01, 0xfd00];

fn results(kernels: Kernels, w: &Matrix<'_>, acts: &Activations, parts: &[ActRow<'_>]) -> Vec<f32> {
    let tokens = acts.rows();
    let mut whole = vec![0.0; ROWS * tokens];
    kernels.matmul(w, acts, &mut whole);
    let mut in_parts = vec![0.0; ROWS * parts.len()];
    kernels.multiply_rows_by_block(w, 0..ROWS, parts, None, &mut in_parts);
    let xs: Vec<_> = (0..tokens).map(|t| acts.row(t)).collect();
    let mut by_token = vec![0.0; ROWS * tokens];
    kernels.multiply_rows(w, 0..ROWS, &xs, None, &mut by_token);
    // All have the rows innermost.
    whole.extend(in_parts);
    whole.extend(by_token);
    whole
}

/// Compares a matrix with the same one of which some rows are spoilt.
fn assert_spoilt_alone(random: &mut Random, good: &Matrix<'_>, bad: &Matrix<'_>, what: &str) {
    let format = good.ty().activation_format();
    for tokens in TOKENS {
        // Nowhere zero: an infinite scale times a sum of zero is NaN, a finite one is not.
        let values: Vec<f32> = random.floats(tokens * good.cols());
        let mut acts = Activations::new();
        acts.set(format, good.cols(), &values);
        let blocks = good.cols().div_ceil(256);
        let strips: Vec<Activations> = (0..blocks)
            .map(|b| {
                let mut strip = Activations::new();
                let columns = 256 * b..good.cols().min(256 * (b + 1));
                let values: Vec<f32> = values
                    .chunks_exact(good.cols())
                    .flat_map(|x| &x[columns.clone()])
                    .copied()
                    .collect();
                strip.set(format, columns.len(), &values);
                strip
            })
            .collect();
        let parts: Vec<ActRow<'_>> = strips
            .iter()
            .flat_map(|strip| (0..tokens).map(|t| strip.row(t)))
            .collect();
        for kernels in Kernels::available() {
            let label = format!("{what} {}, {tokens} tokens, {}", good.ty(), kernels.name());
            let expected = results(kernels, good, &acts, &parts);
            let found = results(kernels, bad, &acts, &parts);
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let row = i % ROWS;
                if !SPOILT.contains(&row) {
                    assert_eq!(found.to_bits(), expected.to_bits(), "{label}, row {row}");
                } else if i < ROWS * tokens {
                    assert!(!found.is_finite(), "{label}, row {row}: {found}");
                }
            }
        }
    }
}

#[test]
fn wild_scales_of_any_format_spoil_their_row_alone() {
    let mut random = Random(21);
    for ty in QUANTISED {
        let cols = 3 * 256;
        let bytes = weights(&mut random, ty, ROWS, cols);
        let good = Matrix::new(ty, ROWS, cols, &bytes).unwrap();
        for &at in halves(ty) {
            for wild in WILD {
                let mut bytes = bytes.clone();
                for row in SPOILT {
                    let start = row * good.row_bytes() + ty.block_bytes() + at;
                    bytes[start..start + 2].copy_from_slice(&wild.to_le_bytes());
                }
                let bad = Matrix::new(ty, ROWS, cols, &bytes).unwrap();
                assert_spoilt_alone(&mut random, &good, &bad, &format!("scale {wild:#x} of"));
            }
        }
    }
}

#[test]
fn wild_values_of_float_formats_spoil_their_row_alone() {
    let mut random = Random(22);
    for ty in [GgmlType::F16, GgmlType::BF16, GgmlType::F32] {
        let cols = 2 * 256;
        let bytes = weights(&mut random, ty, ROWS, cols);
        let good = Matrix::new(ty, ROWS, cols, &bytes).unwrap();
        let size = ty.block_bytes();
        for sign in [0x00, 0x80] {
            let mut bytes = bytes.clone();
            for row in SPOILT {
                // All exponent bits set, in each of the formats.
                let at = row * good.row_bytes() + 300 * size;
                bytes[at..at + size].fill(0);
                bytes[at + size - 2..at + size].copy_from_slice(&[0xc0, 0x7f | sign]);
            }
            let bad = Matrix::new(ty, ROWS, cols, &bytes).unwrap();
            assert_spoilt_alone(&mut random, &good, &bad, "value of");
        }
    }
}

/// Scales and results below the normal range are numbers like others.
#[test]
fn subnormal_scales_are_equal_on_every_set() {
    let mut random = Random(23);
    for ty in QUANTISED {
        let cols = 2 * 256;
        let mut bytes = weights(&mut random, ty, ROWS, cols);
        for block in bytes.chunks_exact_mut(ty.block_bytes()) {
            for &at in halves(ty) {
                block[at + 1] &= 0x80;
                block[at] &= 0x0f;
            }
            if ty == GgmlType::Mxfp4 {
                block[0] = 114 + block[0] % 4;
            }
        }
        let w = Matrix::new(ty, ROWS, cols, &bytes).unwrap();
        for tokens in TOKENS {
            // Small enough for products below the normal range of f32.
            let values: Vec<f32> = random
                .floats(tokens * cols)
                .iter()
                .map(|v| v * 1e-36)
                .collect();
            let mut acts = Activations::new();
            acts.set(ty.activation_format(), cols, &values);
            let xs: Vec<_> = (0..tokens).map(|t| acts.row(t)).collect();
            let expected = by_row(Kernels::named("scalar").unwrap(), &w, &xs);
            assert!(expected.iter().any(|v| v.is_subnormal()), "{ty}");
            for kernels in Kernels::available() {
                let found = by_row(kernels, &w, &xs);
                assert_eq!(bits(&found), bits(&expected), "{ty} on {}", kernels.name());
            }
        }
    }
}
