//! Rows in panels give the bits of the same rows one by one.

use proptest::prelude::*;

use super::*;
use crate::kernels::Activations;
use crate::quant::{ActivationFormat, Layout, PANEL_ROWS, to_panels};

/// Q4_K rows of `cols` columns in panels.
fn in_panels(plain: &[u8], cols: usize) -> Vec<u8> {
    let mut bytes = vec![0; plain.len()];
    to_panels(plain, cols / 256 * 144, &mut bytes);
    bytes
}

/// The blocks of each row of activations.
fn blocks(x: &[Vec<BlockQ8K>]) -> Vec<ActRow<'_>> {
    x.iter().map(|x| ActRow::Q8K(x)).collect()
}

/// All ways to multiply give what scalar code gives for plain rows, over all columns and a strip.
fn assert_same_bits(plain: &[u8], rows: usize, cols: usize, x: &[Vec<BlockQ8K>]) {
    let stored = in_panels(plain, cols);
    let w = Matrix::new(GgmlType::Q4K, rows, cols, plain).unwrap();
    let panels = Matrix::stored(Layout::Panels, GgmlType::Q4K, rows, cols, &stored).unwrap();
    let scalar = Kernels::named("scalar").unwrap();
    for strip in [0..cols, cols / 512 * 256..cols] {
        let w = w.column_strip(strip.clone()).unwrap();
        let panels = panels.column_strip(strip.clone()).unwrap();
        let width = strip.len() / 256;
        let x: Vec<_> = x.iter().map(|x| x[..width].to_vec()).collect();
        let xs = blocks(&x);
        let expected = bits(&by_row(scalar, &w, &xs));
        let mut list: Vec<ActRow<'_>> = Vec::new();
        for b in 0..width {
            list.extend(x.iter().map(|x| ActRow::Q8K(&x[b..b + 1])));
        }
        let mut parts = vec![f32::NAN; list.len() * rows];
        scalar.multiply_rows_by_block(&w, 0..rows, &list, None, &mut parts);
        for kernels in Kernels::available() {
            let label = format!("{panels:?} x {} on {}", x.len(), kernels.name());
            assert_eq!(bits(&by_row(kernels, &panels, &xs)), expected, "{label}");
            let turned = by_token(kernels, &panels, &xs);
            assert_eq!(bits(&turned), expected, "{label}, by token");
            let mut out = vec![f32::NAN; parts.len()];
            kernels.multiply_rows_by_block(&panels, 0..rows, &list, Some(&w), &mut out);
            assert_eq!(bits(&out), bits(&parts), "{label}, in parts");
            let last = rows - PANEL_ROWS;
            let mut out = vec![f32::NAN; PANEL_ROWS * xs.len()];
            kernels.multiply_row_by_row(&panels, last..rows, &xs, &mut out);
            assert_eq!(
                bits(&out),
                expected[last * xs.len()..],
                "{label}, last rows"
            );
        }
    }
}

#[test]
fn panels_equal_rows_for_every_number_of_tokens() {
    let mut random = Random(31);
    for tokens in (1..=20).chain([31, 32, 33, 63, 64, 65, 130]) {
        let (rows, cols) = (48, 1280);
        let plain = weights(&mut random, GgmlType::Q4K, rows, cols);
        let mut acts = Activations::new();
        acts.set(ActivationFormat::Q8K, cols, &random.floats(tokens * cols));
        let own: Vec<Vec<BlockQ8K>> = (0..tokens)
            .map(|t| match acts.row(t) {
                ActRow::Q8K(blocks) => blocks.to_vec(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_same_bits(&plain, rows, cols, &own);
        let foreign: Vec<_> = (0..tokens).map(|_| raw_q8_k(&mut random, 5)).collect();
        assert_same_bits(&plain, rows, cols, &foreign);
    }
}

#[test]
fn extreme_values_stay_exact() {
    for byte in [0x00, 0xff, 0xf0, 0x0f] {
        for scale in [0x0000, 0x0001, 0x3c00, 0x7bff, 0xfbff_u16] {
            let mut plain = vec![byte; 16 * 2 * 144];
            for block in plain.chunks_exact_mut(144) {
                for at in [0, 2] {
                    block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
            for q in [-128, -127, 0, 127] {
                for sum in [16 * i16::from(q), i16::MIN, i16::MAX] {
                    let block = BlockQ8K {
                        d: -1.5,
                        q: [q; 256],
                        bsums: [sum; 16],
                    };
                    for tokens in [1, 5, 12] {
                        assert_same_bits(&plain, 16, 512, &vec![vec![block; 2]; tokens]);
                    }
                }
            }
        }
    }
}

#[test]
fn wild_scales_spoil_their_row_alone() {
    let mut random = Random(32);
    let (rows, cols) = (32, 512);
    for wild in [0x7c00, 0xfc00, 0x7e01_u16] {
        for at in [0, 2] {
            let mut plain = weights(&mut random, GgmlType::Q4K, rows, cols);
            plain[19 * 288 + at..][..2].copy_from_slice(&wild.to_le_bytes());
            let x: Vec<_> = (0..3).map(|_| raw_q8_k(&mut random, 2)).collect();
            assert_same_bits(&plain, rows, cols, &x);
            let stored = in_panels(&plain, cols);
            let w = Matrix::stored(Layout::Panels, GgmlType::Q4K, rows, cols, &stored).unwrap();
            for kernels in Kernels::available() {
                for (r, results) in by_row(kernels, &w, &blocks(&x)).chunks(3).enumerate() {
                    assert!(
                        results.iter().all(|v| v.is_finite() == (r != 19)),
                        "row {r}"
                    );
                }
            }
        }
    }
}

#[test]
fn plain_activations_are_multiplied_with_the_rows_of_a_panel() {
    let mut random = Random(33);
    let (rows, cols) = (32, 512);
    let plain = weights(&mut random, GgmlType::Q4K, rows, cols);
    let stored = in_panels(&plain, cols);
    let w = Matrix::new(GgmlType::Q4K, rows, cols, &plain).unwrap();
    let panels = Matrix::stored(Layout::Panels, GgmlType::Q4K, rows, cols, &stored).unwrap();
    for tokens in [1, 3, 9] {
        let mut acts = Activations::new();
        acts.set(ActivationFormat::F32, cols, &random.floats(tokens * cols));
        for kernels in Kernels::available() {
            let (mut a, mut b) = (vec![0.0; tokens * rows], vec![1.0; tokens * rows]);
            kernels.matmul(&w, &acts, &mut a);
            kernels.matmul(&panels, &acts, &mut b);
            assert_eq!(bits(&a), bits(&b), "{tokens} tokens on {}", kernels.name());
        }
    }
}

#[test]
fn what_cannot_be_in_panels_is_refused() {
    let bytes = [0; 24 * 144];
    let ragged = Matrix::stored(Layout::Panels, GgmlType::Q4K, 24, 256, &bytes).unwrap_err();
    assert_eq!(
        ragged.to_string(),
        "a Q4_K matrix of 24 rows cannot be stored in panels of 16 Q4_K rows"
    );
    let other = Matrix::stored(Layout::Panels, GgmlType::Q8_0, 16, 32, &bytes[..16 * 34]);
    assert!(matches!(
        other,
        Err(crate::kernels::ShapeError::Panels { .. })
    ));
    assert!(Matrix::stored(Layout::Panels, GgmlType::Q4K, 16, 256, &bytes[..1]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_bytes_give_the_same_bits_in_panels(
        blocks in 1_usize..6,
        tokens in 1_usize..20,
        seed in any::<u64>(),
        noise in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let mut random = Random(seed);
        let mut plain = random.bytes(32 * blocks * 144);
        for (to, from) in plain.iter_mut().zip(noise) {
            *to = from;
        }
        let x: Vec<_> = (0..tokens).map(|_| raw_q8_k(&mut random, blocks)).collect();
        assert_same_bits(&plain, 32, 256 * blocks, &x);
    }
}
