//! Whole products of dense layers: GEMM of Q8_0, grids of f32 rows, several products at
//! once, and groups of rows with their own columns.

use proptest::prelude::*;

use super::*;
use crate::kernels::{Activations, Product};
use crate::quant::ActivationFormat;

/// `out[t * rows + r]` by single rows and single tokens of the scalar code.
fn defined(w: &Matrix<'_>, acts: &Activations) -> Vec<f32> {
    let scalar = Kernels::named("scalar").unwrap();
    let mut out = vec![f32::NAN; w.rows() * acts.rows()];
    for t in 0..acts.rows() {
        scalar.multiply_row_by_row(
            w,
            0..w.rows(),
            &[acts.row(t)],
            &mut out[t * w.rows()..][..w.rows()],
        );
    }
    out
}

fn assert_matmul(w: &Matrix<'_>, values: &[f32], format: ActivationFormat) {
    let mut acts = Activations::new();
    acts.set(format, w.cols(), values);
    let expected = bits(&defined(w, &acts));
    for kernels in Kernels::available() {
        let mut out = vec![f32::NAN; expected.len()];
        kernels.matmul(w, &acts, &mut out);
        let label = format!("{w:?} x {} on {}", acts.rows(), kernels.name());
        assert_eq!(bits(&out), expected, "{label}");
    }
}

#[test]
fn gemm_of_q8_0_is_its_rows() {
    let mut random = Random(21);
    // Whole sets of 32 rows, parts of one, fewer blocks than lanes, and not whole sixteens of blocks.
    for (rows, blocks) in [(32, 16), (33, 1), (7, 17), (96, 35), (1, 5), (64, 0)] {
        let cols = 32 * blocks;
        let bytes = weights(&mut random, GgmlType::Q8_0, rows, cols);
        let w = Matrix::new(GgmlType::Q8_0, rows, cols, &bytes).unwrap();
        for tokens in [1, 2, 3, 63, 64, 65, 130] {
            if cols > 0 {
                assert_matmul(&w, &random.floats(tokens * cols), ActivationFormat::Q8);
            }
        }
    }
}

#[test]
fn gemm_of_q8_0_is_exact_on_extreme_bytes() {
    let mut random = Random(22);
    let cols = 32 * 18;
    for byte in [0x80, 0x7f, 0xff, 0x00] {
        let mut bytes = vec![byte; 40 * 18 * 34];
        for block in bytes.chunks_exact_mut(34) {
            block[..2].copy_from_slice(&0x7bff_u16.to_le_bytes());
        }
        let w = Matrix::new(GgmlType::Q8_0, 40, cols, &bytes).unwrap();
        for value in [-1.0, 1.0] {
            assert_matmul(&w, &vec![value; 5 * cols], ActivationFormat::Q8);
        }
    }
    // Scales are any halves, and one activation is infinite.
    let bytes = random.bytes(40 * 18 * 34);
    let w = Matrix::new(GgmlType::Q8_0, 40, cols, &bytes).unwrap();
    let mut values = random.floats(5 * cols);
    values[2 * cols + 3] = f32::INFINITY;
    assert_matmul(&w, &values, ActivationFormat::Q8);
}

#[test]
fn gemv_is_its_rows() {
    let mut random = Random(27);
    for cols in [1, 31, 32, 47, 64, 100, 1030] {
        let bytes = weights(&mut random, GgmlType::F16, 21, cols);
        let w = Matrix::new(GgmlType::F16, 21, cols, &bytes).unwrap();
        assert_matmul(&w, &random.floats(cols), ActivationFormat::F32);
    }
    for blocks in [1, 15, 16, 33] {
        let bytes = random.bytes(21 * blocks * 34);
        let w = Matrix::new(GgmlType::Q8_0, 21, 32 * blocks, &bytes).unwrap();
        assert_matmul(&w, &random.floats(32 * blocks), ActivationFormat::Q8);
    }
}

#[test]
fn grids_are_single_dots() {
    let mut random = Random(23);
    for dim in [1, 15, 16, 100, 512, 1030] {
        for (left, right) in [(1, 1), (4, 3), (8, 32), (13, 37), (17, 2)] {
            let a = random.floats(left * dim);
            let b = random.floats(right * dim);
            let rows = |all: &'_ [f32]| all.chunks_exact(dim).map(<[f32]>::to_vec).collect();
            let (a, b): (Vec<Vec<f32>>, Vec<Vec<f32>>) = (rows(&a), rows(&b));
            let a: Vec<&[f32]> = a.iter().map(Vec::as_slice).collect();
            let b: Vec<&[f32]> = b.iter().map(Vec::as_slice).collect();
            for kernels in Kernels::available() {
                let stride = right + 3;
                let mut out = vec![7.0; left * stride];
                kernels.dots_grid(&a, &b, &mut out, stride);
                for (i, row) in out.chunks_exact(stride).enumerate() {
                    for (j, found) in row[..right].iter().enumerate() {
                        let single = kernels.dot_f32(a[i], b[j]);
                        assert_eq!(found.to_bits(), single.to_bits(), "{}", kernels.name());
                    }
                    assert_eq!(row[right..], [7.0; 3], "places between the rows");
                }
            }
        }
    }
}

#[test]
fn scaled_grids_are_single_additions() {
    let mut random = Random(24);
    for dim in [1, 63, 64, 200, 512] {
        for (heads, count) in [(1, 1), (4, 5), (7, 32), (8, 3)] {
            let stride = count + 2;
            let factors = random.floats(heads * stride);
            let xs = random.floats(count * dim);
            let xs: Vec<&[f32]> = xs.chunks_exact(dim).collect();
            let start = random.floats(heads * dim);
            for kernels in Kernels::available() {
                let (mut one, mut all) = (start.clone(), start.clone());
                kernels.add_scaled_grid(&factors, stride, &xs, &mut all);
                for (y, factors) in one.chunks_exact_mut(dim).zip(factors.chunks(stride)) {
                    for (x, f) in xs.iter().zip(factors) {
                        for (y, x) in y.iter_mut().zip(*x) {
                            *y += f * x;
                        }
                    }
                }
                assert_eq!(bits(&all), bits(&one), "{}", kernels.name());
            }
        }
    }
}

#[test]
fn products_together_are_products_alone() {
    let mut random = Random(25);
    let cols = 512;
    for tokens in [1, 5, 70] {
        let values = random.floats(tokens * cols);
        let made: Vec<_> = [GgmlType::Q8_0, GgmlType::F16, GgmlType::Q4K, GgmlType::Q8_0]
            .into_iter()
            .zip([96, 24, 300, 1])
            .map(|(ty, rows)| {
                let mut acts = Activations::new();
                acts.set(ty.activation_format(), cols, &values);
                (ty, rows, weights(&mut random, ty, rows, cols), acts)
            })
            .collect();
        for kernels in Kernels::available() {
            let mut outs: Vec<_> = made.iter().map(|m| vec![f32::NAN; m.1 * tokens]).collect();
            let mut products: Vec<_> = made
                .iter()
                .zip(&mut outs)
                .map(|((ty, rows, bytes, acts), out)| {
                    Product::new(Matrix::new(*ty, *rows, cols, bytes).unwrap(), acts, out)
                })
                .collect();
            kernels.matmul_all(&mut products);
            for ((ty, rows, bytes, acts), out) in made.iter().zip(&outs) {
                let w = Matrix::new(*ty, *rows, cols, bytes).unwrap();
                assert_eq!(bits(out), bits(&defined(&w, acts)), "{ty}");
            }
        }
    }
}

#[test]
fn groups_of_rows_are_multiplied_with_their_own_columns() {
    let mut random = Random(26);
    let (groups, height, width) = (3, 37, 256);
    for ty in [GgmlType::Q8_0, GgmlType::Q4K, GgmlType::F16] {
        let bytes = weights(&mut random, ty, groups * height, width);
        let w = Matrix::new(ty, groups * height, width, &bytes).unwrap();
        for tokens in [1, 4, 67] {
            let values = random.floats(tokens * groups * width);
            let mut acts = Activations::new();
            acts.set(ty.activation_format(), groups * width, &values);
            for kernels in Kernels::available() {
                let mut out = vec![f32::NAN; tokens * groups * height];
                kernels.matmul_all(&mut [Product::grouped(w, groups, &acts, &mut out)]);
                for g in 0..groups {
                    let rows = w.row_range(g * height..(g + 1) * height);
                    let own: Vec<f32> = values
                        .chunks_exact(width)
                        .skip(g)
                        .step_by(groups)
                        .flatten()
                        .copied()
                        .collect();
                    let mut part = Activations::new();
                    part.set(ty.activation_format(), width, &own);
                    let expected = defined(&rows, &part);
                    for (t, expected) in expected.chunks_exact(height).enumerate() {
                        let found = &out[(t * groups + g) * height..][..height];
                        assert_eq!(bits(found), bits(expected), "{ty} group {g} token {t}");
                    }
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "activations of 512 columns for 3 matrices of 256 columns")]
fn groups_need_columns_of_their_own() {
    let mut acts = Activations::new();
    acts.set(ActivationFormat::F32, 512, &[0.0; 512]);
    let w = Matrix::new(GgmlType::F32, 3, 256, &[0; 3072]).unwrap();
    Kernels::detect().matmul_all(&mut [Product::grouped(w, 3, &acts, &mut [0.0; 3])]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_gemm_of_q8_0_is_its_rows(
        rows in 1_usize..70,
        blocks in 1_usize..40,
        tokens in 1_usize..140,
        seed in any::<u64>(),
    ) {
        let mut random = Random(seed);
        let bytes = random.bytes(rows * blocks * 34);
        let w = Matrix::new(GgmlType::Q8_0, rows, 32 * blocks, &bytes).unwrap();
        assert_matmul(&w, &random.floats(tokens * 32 * blocks), ActivationFormat::Q8);
    }

    #[test]
    fn any_float_product_is_its_dots(
        rows in 1_usize..40,
        cols in 1_usize..1200,
        tokens in 1_usize..80,
        seed in any::<u64>(),
    ) {
        let mut random = Random(seed);
        let bytes = weights(&mut random, GgmlType::F16, rows, cols);
        let w = Matrix::new(GgmlType::F16, rows, cols, &bytes).unwrap();
        assert_matmul(&w, &random.floats(tokens * cols), ActivationFormat::F32);
    }
}
