//! Every instruction set gives the bits of the scalar definition.

use proptest::prelude::*;

use super::*;
use crate::kernels::Activations;
use crate::quant::{ActivationFormat, dequantize_row};

const TOKEN_COUNTS: [usize; 8] = [1, 2, 3, 7, 8, 33, 64, 67];

/// All instruction sets give what the scalar code gives, and the result of a token does not
/// depend on its neighbours.
fn assert_all_equal(w: &Matrix<'_>, xs: &[ActRow<'_>], what: &str) {
    let scalar = Kernels::named("scalar").unwrap();
    let expected = by_row(scalar, w, xs);
    for kernels in Kernels::available() {
        let label = format!("{what}: {w:?} x {} on {}", xs.len(), kernels.name());
        assert_eq!(bits(&by_row(kernels, w, xs)), bits(&expected), "{label}");
        let turned = by_token(kernels, w, xs);
        assert_eq!(bits(&turned), bits(&expected), "{label}, by token");
        for (t, x) in xs.iter().enumerate().take(3) {
            let alone = by_row(kernels, w, &[*x]);
            let column: Vec<f32> = expected.iter().skip(t).step_by(xs.len()).copied().collect();
            assert_eq!(bits(&alone), bits(&column), "{label}, token {t} alone");
        }
    }
}

fn assert_equal_on_raw(random: &mut Random, w: &Matrix<'_>, tokens: usize, what: &str) {
    let blocks = w.cols() / w.ty().block_elements();
    match w.ty().activation_format() {
        ActivationFormat::Q8 => {
            let x: Vec<_> = (0..tokens).map(|_| raw_q8(random, blocks)).collect();
            let xs: Vec<_> = x.iter().map(|x| ActRow::Q8(x)).collect();
            assert_all_equal(w, &xs, what);
        }
        ActivationFormat::Q8K => {
            let x: Vec<_> = (0..tokens).map(|_| raw_q8_k(random, blocks)).collect();
            let xs: Vec<_> = x.iter().map(|x| ActRow::Q8K(x)).collect();
            assert_all_equal(w, &xs, what);
        }
        ActivationFormat::F32 => {}
    }
    let x: Vec<_> = (0..tokens).map(|_| random.floats(w.cols())).collect();
    let xs: Vec<_> = x.iter().map(|x| ActRow::F32(x)).collect();
    assert_all_equal(w, &xs, what);
}

#[test]
fn every_set_equals_scalar_on_random_blocks() {
    let mut random = Random(1);
    for ty in QUANTISED {
        for tokens in TOKEN_COUNTS {
            let blocks = if ty.block_elements() == 32 { 21 } else { 5 };
            let (rows, cols) = (3, blocks * ty.block_elements());
            let bytes = weights(&mut random, ty, rows, cols);
            let w = Matrix::new(ty, rows, cols, &bytes).unwrap();
            assert_equal_on_raw(&mut random, &w, tokens, "random");
        }
    }
}

#[test]
fn every_set_equals_scalar_for_every_number_of_blocks() {
    let mut random = Random(2);
    for ty in QUANTISED {
        for blocks in 0..=35 {
            let cols = blocks * ty.block_elements();
            let bytes = weights(&mut random, ty, 2, cols);
            let w = Matrix::new(ty, 2, cols, &bytes).unwrap();
            assert_equal_on_raw(&mut random, &w, 5, "blocks");
        }
    }
}

#[test]
fn every_set_equals_scalar_on_many_rows_of_any_bytes() {
    let mut random = Random(5);
    for tokens in [1, 2, 4, 5, 16, 17, 64, 67] {
        for blocks in [1, 2, 7, 16] {
            let (rows, cols) = (35, 256 * blocks);
            // Scales are any halves, infinite and NaN among them.
            let bytes = random.bytes(rows * blocks * GgmlType::Q4K.block_bytes());
            let w = Matrix::new(GgmlType::Q4K, rows, cols, &bytes).unwrap();
            assert_equal_on_raw(&mut random, &w, tokens, "many rows");
            for byte in [0x00, 0xff] {
                let bytes = vec![byte; bytes.len()];
                let mut scaled = bytes.clone();
                for block in scaled.chunks_exact_mut(144) {
                    block[..4].copy_from_slice(&[0xff, 0x7b, 0xff, 0x7b]);
                }
                let w = Matrix::new(GgmlType::Q4K, rows, cols, &scaled).unwrap();
                let large = vec![
                    BlockQ8K {
                        d: -1.5,
                        q: [-128; 256],
                        bsums: [i16::MIN; 16],
                    };
                    blocks
                ];
                assert_all_equal(&w, &vec![ActRow::Q8K(&large); tokens], "extreme rows");
            }
        }
    }
}

#[test]
fn every_set_equals_scalar_on_extreme_blocks() {
    let mut random = Random(3);
    for ty in QUANTISED {
        let cols = 17 * ty.block_elements();
        let len = cols / ty.block_elements() * ty.block_bytes();
        // All bits clear, all set, the largest finite scale, and the byte that is -128.
        for byte in [0x00, 0xff, 0x7f, 0x80] {
            for scale in [0x0000, 0x0001, 0x3c00, 0x7bff, 0xfbff_u16] {
                let mut bytes = vec![byte; len];
                for block in bytes.chunks_exact_mut(ty.block_bytes()) {
                    for &at in halves(ty) {
                        block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                    }
                }
                let w = Matrix::new(ty, 1, cols, &bytes).unwrap();
                for q in [-128, 0, 127] {
                    let small = [BlockQ8 { d: 1.0, q: [q; 32] }; 17];
                    let bsums = [16 * i16::from(q); 16];
                    let large = [BlockQ8K {
                        d: -1.5,
                        q: [q; 256],
                        bsums,
                    }; 17];
                    let x = match ty.activation_format() {
                        ActivationFormat::Q8 => ActRow::Q8(&small),
                        _ => ActRow::Q8K(&large),
                    };
                    assert_all_equal(&w, &[x; 5], "extreme");
                }
                assert_equal_on_raw(&mut random, &w, 6, "extreme weights");
            }
        }
    }
}

#[test]
fn wild_scales_spoil_their_row_alone() {
    let mut random = Random(4);
    for ty in QUANTISED {
        for wild in [0x7c00, 0xfc00, 0x7e01, 0xfd00_u16] {
            let Some(&at) = halves(ty).last() else {
                continue;
            };
            let cols = 18 * ty.block_elements();
            let mut bytes = weights(&mut random, ty, 3, cols);
            let block = (18 + 4) * ty.block_bytes();
            bytes[block + at..block + at + 2].copy_from_slice(&wild.to_le_bytes());
            let w = Matrix::new(ty, 3, cols, &bytes).unwrap();
            assert_equal_on_raw(&mut random, &w, 5, "wild");
            let x = random.floats(cols);
            for kernels in Kernels::available() {
                let out = by_row(kernels, &w, &[ActRow::F32(&x); 2]);
                let finite: Vec<bool> = out.iter().map(|v| v.is_finite()).collect();
                assert_eq!(
                    finite,
                    [true, true, false, false, true, true],
                    "{ty} {wild:#x}"
                );
            }
        }
    }
}

#[test]
fn wild_activations_give_nan_for_their_token_alone() {
    let mut random = Random(5);
    for ty in QUANTISED {
        let cols = 1024;
        let bytes = weights(&mut random, ty, 4, cols);
        let w = Matrix::new(ty, 4, cols, &bytes).unwrap();
        let mut values = random.floats(3 * cols);
        values[cols + 700] = f32::INFINITY;
        let mut acts = Activations::new();
        acts.set(ty.activation_format(), cols, &values);
        for kernels in Kernels::available() {
            let mut out = [0.0; 12];
            kernels.matmul(&w, &acts, &mut out);
            for (t, results) in out.chunks(4).enumerate() {
                assert!(
                    results.iter().all(|v| v.is_nan() == (t == 1)),
                    "{ty} token {t}"
                );
            }
        }
    }
}

#[test]
fn float_matrices_equal_scalar_for_every_length() {
    let mut random = Random(9);
    for ty in [GgmlType::F32, GgmlType::F16, GgmlType::BF16] {
        for cols in 0..=70 {
            for tokens in [1, 2, 3, 7, 8, 33] {
                let bytes = weights(&mut random, ty, 5, cols);
                let w = Matrix::new(ty, 5, cols, &bytes).unwrap();
                assert_equal_on_raw(&mut random, &w, tokens, "floats");
            }
        }
    }
}

#[test]
fn wide_activations_come_in_several_parts() {
    let mut random = Random(12);
    let (rows, cols, tokens) = (5, 12_000, 19);
    let bytes = weights(&mut random, GgmlType::F16, rows, cols);
    let w = Matrix::new(GgmlType::F16, rows, cols, &bytes).unwrap();
    assert_equal_on_raw(&mut random, &w, tokens, "wide");
}

#[test]
fn every_half_widens_alike() {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for ty in [GgmlType::F16, GgmlType::BF16] {
        let mut expected = vec![0.0; 1 << 16];
        dequantize_row(ty, &bytes, &mut expected);
        for kernels in Kernels::available() {
            let w = Matrix::new(ty, 1 << 16, 1, &bytes).unwrap();
            let out = by_row(kernels, &w, &[ActRow::F32(&[1.0])]);
            assert_eq!(
                bits(&out),
                bits(&expected.iter().map(|v| 0.0 + v).collect::<Vec<_>>())
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_with_finite_scales_are_equal_on_every_set(
        ty in prop::sample::select(QUANTISED.to_vec()),
        blocks in 1_usize..20,
        tokens in 1_usize..10,
        seed in any::<u64>(),
        noise in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut random = Random(seed);
        let cols = blocks * ty.block_elements();
        let mut bytes = random.bytes(2 * blocks * ty.block_bytes());
        for (to, from) in bytes.iter_mut().zip(noise) {
            *to = from;
        }
        for block in bytes.chunks_exact_mut(ty.block_bytes()) {
            for &at in halves(ty) {
                // Any finite half: the exponent is not all ones.
                block[at + 1] &= if block[at + 1] & 0x7c == 0x7c { 0xbf } else { 0xff };
            }
        }
        let w = Matrix::new(ty, 2, cols, &bytes).unwrap();
        assert_equal_on_raw(&mut random, &w, tokens, "property");
    }
}
