//! The definition against known values, against f64, and against its shape spelled out.

use proptest::prelude::*;

use super::*;
use crate::kernels::{Activations, scalar};
use crate::quant::{IntBlock, Q4K, SuperBlock, dequantize_row, quantize_q8, quantize_q8_k};

/// The dot of a quantised row with a quantised activation against both dequantised, in f64.
#[test]
fn fifty_random_blocks_agree_with_dequantised_f64() {
    let mut random = Random(6);
    for ty in QUANTISED {
        for round in 0..50 {
            let elements = ty.block_elements();
            let bytes = weights(&mut random, ty, 1, elements);
            let values = random.floats(elements);
            let mut wide = vec![0.0; elements];
            dequantize_row(ty, &bytes, &mut wide);
            let mut acts = Activations::new();
            acts.set(ty.activation_format(), elements, &values);
            let seen: Vec<f64> = match acts.row(0) {
                ActRow::F32(x) => x.iter().map(|&x| f64::from(x)).collect(),
                ActRow::Q8(x) => seen(x, |x| (x.d, &x.q[..])),
                ActRow::Q8K(x) => seen(x, |x| (x.d, &x.q[..])),
            };
            let products = || wide.iter().zip(&seen).map(|(&w, x)| f64::from(w) * x);
            let (exact, size) = (
                products().sum::<f64>(),
                products().map(f64::abs).sum::<f64>(),
            );
            let w = Matrix::new(ty, 1, elements, &bytes).unwrap();
            let got = by_row(Kernels::detect(), &w, &[acts.row(0)])[0];
            let error = (f64::from(got) - exact).abs();
            assert!(
                error <= 1e-6 * size,
                "{ty} block {round}: {got} for {exact}"
            );
        }
    }
}

fn seen<B>(blocks: &[B], content: impl Fn(&B) -> (f32, &[i8])) -> Vec<f64> {
    let values = |b| {
        let (d, q): (f32, &[i8]) = content(b);
        q.iter()
            .map(move |&q| f64::from(d) * f64::from(q))
            .collect::<Vec<_>>()
    };
    blocks.iter().flat_map(values).collect()
}

#[test]
fn the_reference_block_of_q4_k_has_the_known_dot() {
    let mut bytes = [0; 144];
    bytes[..4].copy_from_slice(&[0x00, 0x38, 0x00, 0x34]);
    for i in 0..12 {
        bytes[4 + i] = ((37 * i + 11) % 256) as u8;
    }
    for i in 0..128 {
        bytes[16 + i] = ((7 * i + 3) % 256) as u8;
    }
    let q: [i8; 256] = std::array::from_fn(|i| ((5 * i) % 23) as i8 - 11);
    let bsums = std::array::from_fn(|k| q[16 * k..16 * k + 16].iter().map(|&q| i16::from(q)).sum());
    assert_eq!(
        bsums,
        [-13, 2, -6, 9, 1, -7, 8, 0, -8, 7, -1, -9, 6, -2, 13, -18]
    );
    let x = [BlockQ8K { d: 0.125, q, bsums }];
    let mut w = IntBlock::ZERO;
    Q4K::unpack(&bytes, &mut w);
    let integer: i32 = (0..256)
        .map(|i| i32::from(w.scales[i / 16]) * i32::from(w.q[i]) * i32::from(q[i]))
        .sum();
    assert_eq!((integer, scalar::sum_of_mins(&w, &x[0])), (-6182, -858));
    let matrix = Matrix::new(GgmlType::Q4K, 1, 256, &bytes).unwrap();
    for kernels in Kernels::available() {
        assert_eq!(by_row(kernels, &matrix, &[ActRow::Q8K(&x)]), [-359.5625]);
        assert_eq!(
            by_row(kernels, &matrix, &[ActRow::Q8K(&x); 6]),
            [-359.5625; 6]
        );
    }
}

#[test]
fn the_small_formats_follow_the_lanes() {
    let mut random = Random(7);
    let blocks = 37;
    let bytes = weights(&mut random, GgmlType::Mxfp4, 1, 32 * blocks);
    let x = raw_q8(&mut random, blocks);
    let mut wide = vec![0.0; 32 * blocks];
    dequantize_row(GgmlType::Mxfp4, &bytes, &mut wide);
    let mut lanes = [0.0_f32; 16];
    for b in 0..blocks {
        let dw = 2_f32.powi(i32::from(bytes[17 * b]) - 127) * 0.5;
        let sum: f32 = (0..32)
            .map(|i| wide[32 * b + i] / dw * f32::from(x[b].q[i]))
            .sum::<f32>();
        lanes[b % 16] += (dw * x[b].d) * sum;
    }
    for width in [8, 4, 2, 1] {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
    }
    let w = Matrix::new(GgmlType::Mxfp4, 1, 32 * blocks, &bytes).unwrap();
    for kernels in Kernels::available() {
        assert_eq!(
            by_row(kernels, &w, &[ActRow::Q8(&x)]),
            [lanes[0]],
            "{}",
            kernels.name()
        );
    }
}

#[test]
fn float_dots_have_one_shape_for_every_length() {
    let mut random = Random(8);
    for len in 0..=70 {
        let (a, b) = (random.floats(len), random.floats(len));
        let mut lanes = [0.0_f32; 16];
        for i in 0..len {
            lanes[i % 16] += a[i] * b[i];
        }
        for width in [8, 4, 2, 1] {
            for l in 0..width {
                lanes[l] += lanes[l + width];
            }
        }
        let mut sum: Vec<f32> = b.clone();
        a.iter().zip(&mut sum).for_each(|(x, y)| *y += 0.37 * x);
        for kernels in Kernels::available() {
            assert_eq!(
                kernels.dot_f32(&a, &b).to_bits(),
                lanes[0].to_bits(),
                "length {len}"
            );
            let mut y = b.clone();
            kernels.add_scaled(&[0.37], &[&a], &mut y);
            assert_eq!(bits(&y), bits(&sum), "length {len}");
        }
    }
}

#[test]
fn several_scaled_additions_have_the_bits_of_one_after_the_other() {
    for count in 0..10 {
        for len in [0, 1, 15, 16, 33, 512] {
            let value = |i: usize, j: usize| ((i * 7919 + j * 104_729) % 1009) as f32 * 1e-3 - 0.5;
            let rows: Vec<Vec<f32>> = (0..count)
                .map(|i| (0..len).map(|j| value(i, j)).collect())
                .collect();
            let factors: Vec<f32> = (0..count).map(|i| value(i, 3) * 17.0).collect();
            let mut want: Vec<f32> = (0..len).map(|j| value(77, j)).collect();
            let start = want.clone();
            for (factor, row) in factors.iter().zip(&rows) {
                row.iter()
                    .zip(&mut want)
                    .for_each(|(x, y)| *y += factor * x);
            }
            let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            for kernels in Kernels::available() {
                let mut y = start.clone();
                kernels.add_scaled(&factors, &rows, &mut y);
                assert_eq!(
                    bits(&y),
                    bits(&want),
                    "{count} rows of {len}, {}",
                    kernels.name()
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn quantised_activations_lie_within_half_a_step(
        values in prop::collection::vec(-1e6_f32..1e6, 256),
    ) {
        let mut large = [BlockQ8K::ZERO];
        quantize_q8_k(&values, &mut large);
        let mut small = [BlockQ8::ZERO; 8];
        quantize_q8(&values, &mut small);
        for (i, &v) in values.iter().enumerate() {
            let steps = [
                (large[0].d, large[0].q[i]),
                (small[i / 32].d, small[i / 32].q[i % 32]),
            ];
            for (d, q) in steps {
                prop_assert!((d * f32::from(q) - v).abs() <= 0.5001 * d.abs());
            }
        }
    }
}
