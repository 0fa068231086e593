//! Strips, ranges of rows and whole products agree; what does not fit is refused.

use super::*;
use crate::kernels::Activations;
use crate::quant::ActivationFormat;

#[test]
fn a_strip_is_a_matrix_of_the_same_columns() {
    let mut random = Random(10);
    for ty in QUANTISED {
        let (rows, block) = (6, ty.block_elements());
        let bytes = weights(&mut random, ty, rows, 6 * block);
        let w = Matrix::new(ty, rows, 6 * block, &bytes).unwrap();
        let strip = w.column_strip(2 * block..5 * block).unwrap();
        let copied: Vec<u8> = (0..rows)
            .flat_map(|r| &w.row(r)[2 * ty.block_bytes()..5 * ty.block_bytes()])
            .copied()
            .collect();
        let copy = Matrix::new(ty, rows, 3 * block, &copied).unwrap();
        let mut acts = Activations::new();
        acts.set(
            ty.activation_format(),
            3 * block,
            &random.floats(3 * block * 3),
        );
        for kernels in Kernels::available() {
            let (mut a, mut b) = ([0.0; 18], [0.0; 18]);
            kernels.matmul(&strip, &acts, &mut a);
            kernels.matmul(&copy, &acts, &mut b);
            assert_eq!(bits(&a), bits(&b), "{ty}");
            assert!(a.iter().any(|v| *v != 0.0));
        }
    }
}

#[test]
fn matmul_equals_rows_equals_single_dots() {
    let mut random = Random(11);
    let all = QUANTISED
        .into_iter()
        .chain([GgmlType::F32, GgmlType::F16, GgmlType::BF16]);
    for ty in all {
        let (rows, cols) = (331, 512);
        let bytes = weights(&mut random, ty, rows, cols);
        let w = Matrix::new(ty, rows, cols, &bytes).unwrap();
        for tokens in [1, 3, 70] {
            let mut acts = Activations::new();
            acts.set(ty.activation_format(), cols, &random.floats(tokens * cols));
            let xs: Vec<_> = (0..tokens).map(|t| acts.row(t)).collect();
            for kernels in Kernels::available() {
                let mut out = vec![f32::NAN; rows * tokens];
                kernels.matmul(&w, &acts, &mut out);
                let mut part = vec![f32::NAN; 9 * tokens];
                kernels.multiply_row_by_row(&w, 101..110, &xs, &mut part);
                for (i, r) in (101..110).enumerate() {
                    for t in 0..tokens {
                        let mut single = [f32::NAN];
                        kernels.multiply_row_by_row(&w, r..r + 1, &xs[t..t + 1], &mut single);
                        let got = [out[t * rows + r], part[i * tokens + t]];
                        assert_eq!(bits(&got), bits(&[single[0]; 2]), "{ty} row {r} token {t}");
                    }
                }
            }
        }
    }
}

#[test]
fn empty_shapes_have_empty_or_zero_results() {
    for kernels in Kernels::available() {
        let none = Matrix::new(GgmlType::Q4K, 0, 256, &[]).unwrap();
        let mut acts = Activations::new();
        acts.set(ActivationFormat::Q8K, 256, &[1.0; 512]);
        kernels.matmul(&none, &acts, &mut []);
        acts.set(ActivationFormat::Q8K, 256, &[]);
        let some = Matrix::new(GgmlType::Q4K, 2, 256, &[0; 288]).unwrap();
        kernels.matmul(&some, &acts, &mut []);
        let flat = Matrix::new(GgmlType::F32, 3, 0, &[]).unwrap();
        assert_eq!(by_row(kernels, &flat, &[ActRow::F32(&[]); 2]), [0.0; 6]);
    }
}

#[test]
#[should_panic(expected = "Q4_K weights cannot be multiplied with Q8 activations")]
fn a_wrong_activation_format_is_refused() {
    let w = Matrix::new(GgmlType::Q4K, 1, 256, &[0; 144]).unwrap();
    by_row(Kernels::detect(), &w, &[ActRow::Q8(&[BlockQ8::ZERO; 8])]);
}

#[test]
#[should_panic(expected = "Q8_0 weights cannot be multiplied with Q8K activations")]
fn a_wrong_activation_format_of_experts_is_refused() {
    let w = Matrix::new(GgmlType::Q8_0, 1, 256, &[0; 8 * 34]).unwrap();
    let xs = [ActRow::Q8K(&[BlockQ8K::ZERO])];
    Kernels::detect().multiply_rows(&w, 0..1, &xs, None, &mut [0.0]);
}

#[test]
#[should_panic(expected = "different formats")]
fn mixed_activation_formats_are_refused() {
    let w = Matrix::new(GgmlType::Q4K, 1, 256, &[0; 144]).unwrap();
    let xs = [ActRow::Q8K(&[BlockQ8K::ZERO]), ActRow::F32(&[0.0; 256])];
    by_row(Kernels::detect(), &w, &xs);
}

#[test]
fn kernels_are_found_by_name() {
    for kernels in Kernels::available() {
        assert_eq!(
            Kernels::named(kernels.name()).unwrap().name(),
            kernels.name()
        );
    }
    assert_eq!(
        Kernels::named("auto").unwrap().name(),
        Kernels::detect().name()
    );
    let summary = Kernels::summary();
    assert!(summary.starts_with("scalar"), "{summary}");
    assert!(summary.contains(Kernels::detect().name()), "{summary}");
    let error = Kernels::named("mmx").unwrap_err().to_string();
    assert!(
        error.contains("\"mmx\"") && error.contains("scalar"),
        "{error}"
    );
}

/// On an emulated CPU, the environment names the kernels that are expected there.
#[test]
fn the_fastest_kernels_are_the_expected_ones() {
    if let Ok(expected) = std::env::var("DS4_EXPECTED_KERNELS") {
        assert_eq!(Kernels::detect().name(), expected);
    }
}

#[test]
fn rows_by_token_are_rows_turned_over() {
    let mut random = Random(13);
    let all = QUANTISED
        .into_iter()
        .chain([GgmlType::F32, GgmlType::F16, GgmlType::BF16]);
    for ty in all {
        for blocks in [1, 3, 4, 6, 9] {
            let (rows, cols) = (47, blocks * 256);
            let bytes = random.bytes(rows * cols / ty.block_elements() * ty.block_bytes());
            let full = Matrix::new(ty, rows, cols, &bytes).unwrap();
            // Rows that follow each other, and rows with a gap between them.
            let strip = full.column_strip(0..(cols / 512).max(1) * 256).unwrap();
            for w in [full, strip] {
                for tokens in [0, 1, 2, 3, 4, 5, 8, 9, 11, 12, 16, 17, 64, 65, 66] {
                    let mut acts = Activations::new();
                    let values = random.floats(tokens * w.cols());
                    acts.set(ty.activation_format(), w.cols(), &values);
                    let xs: Vec<_> = (0..tokens).map(|t| acts.row(t)).collect();
                    let scalar = Kernels::named("scalar").unwrap();
                    let mut expected = vec![f32::NAN; 39 * tokens];
                    scalar.multiply_row_by_row(&w, 3..42, &xs, &mut expected);
                    for kernels in Kernels::available() {
                        let mut out = vec![f32::NAN; 39 * tokens];
                        let then = (tokens % 2 == 0).then_some(&full);
                        kernels.multiply_rows(&w, 3..42, &xs, then, &mut out);
                        let turned: Vec<f32> = (0..39 * tokens)
                            .map(|i| out[i % tokens * 39 + i / tokens])
                            .collect();
                        let name = kernels.name();
                        assert_eq!(bits(&turned), bits(&expected), "{w:?} x {tokens} on {name}");
                    }
                }
            }
        }
    }
}

#[test]
fn parts_are_the_products_of_strips() {
    let mut random = Random(12);
    for ty in QUANTISED {
        let (rows, blocks) = (37, 3);
        // Formats of small blocks may end in a narrower part.
        let cols = if ty.block_elements() == 256 { 768 } else { 672 };
        let bytes = weights(&mut random, ty, rows, cols);
        let w = Matrix::new(ty, rows, cols, &bytes).unwrap();
        for tokens in [1, 2, 5, 17, 70] {
            let strips: Vec<Activations> = (0..blocks)
                .map(|b| {
                    let width = (cols - 256 * b).min(256);
                    let mut acts = Activations::new();
                    let values = random.floats(tokens * width);
                    acts.set(ty.activation_format(), width, &values);
                    acts
                })
                .collect();
            let xs: Vec<ActRow<'_>> = strips
                .iter()
                .flat_map(|acts| (0..tokens).map(|t| acts.row(t)))
                .collect();
            for kernels in Kernels::available() {
                let height = 34;
                let mut out = vec![f32::NAN; tokens * blocks * height];
                kernels.multiply_rows_by_block(&w, 2..2 + height, &xs, Some(&w), &mut out);
                for (b, acts) in strips.iter().enumerate() {
                    let columns = 256 * b..cols.min(256 * (b + 1));
                    let strip = w.column_strip(columns).unwrap();
                    let mut expected = vec![f32::NAN; rows * tokens];
                    kernels.matmul(&strip, acts, &mut expected);
                    for t in 0..tokens {
                        assert_eq!(
                            bits(&out[(t * blocks + b) * height..][..height]),
                            bits(&expected[t * rows + 2..][..height]),
                            "{ty} on {}, token {t} of {tokens}, block {b}",
                            kernels.name()
                        );
                    }
                }
            }
        }
    }
}
