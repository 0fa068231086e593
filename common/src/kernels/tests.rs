//! Every instruction set against the scalar definition, and that against f64.

use proptest::prelude::*;

use super::*;
use crate::quant::{ActivationFormat, BlockQ8, BlockQ8K, GgmlType, IntBlock, Q4K, SuperBlock};
use crate::quant::{dequantize_row, quantize_q8, quantize_q8_k};

const QUANTISED: [GgmlType; 8] = [
    GgmlType::Q8_0,
    GgmlType::Mxfp4,
    GgmlType::Q2K,
    GgmlType::Q3K,
    GgmlType::Q4K,
    GgmlType::Q5K,
    GgmlType::Q6K,
    GgmlType::Iq2Xxs,
];

const TOKEN_COUNTS: [usize; 8] = [1, 2, 3, 7, 8, 33, 64, 67];

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963);
        let mixed = self.0 ^ (self.0 >> 29);
        mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 16
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// Within -1 and 1.
    fn float(&mut self) -> f32 {
        (self.next() as u32 >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}

/// Where the half-float scales of a block lie.
fn halves(ty: GgmlType) -> &'static [usize] {
    match ty {
        GgmlType::Q8_0 | GgmlType::Iq2Xxs => &[0],
        GgmlType::Q4K | GgmlType::Q5K => &[0, 2],
        GgmlType::Q2K => &[80, 82],
        GgmlType::Q3K => &[108],
        GgmlType::Q6K => &[208],
        GgmlType::F16 | GgmlType::BF16 => &[0],
        GgmlType::Mxfp4 | GgmlType::F32 | GgmlType::I32 => &[],
    }
}

/// Makes every scale of `bytes` finite and of moderate size.
fn tame(ty: GgmlType, bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        for &at in halves(ty) {
            // Exponents 8 to 15 of a half; for a bfloat, no more than 2^0.
            block[at + 1] = if ty == GgmlType::BF16 {
                block[at + 1] & 0xbf
            } else {
                block[at + 1] & 0x9f | 0x20
            };
        }
        if ty == GgmlType::Mxfp4 {
            block[0] = 110 + block[0] % 20;
        }
        if ty == GgmlType::F32 {
            block[3] &= 0xbf;
        }
    }
}

fn weights(random: &mut Random, ty: GgmlType, rows: usize, cols: usize) -> Vec<u8> {
    let mut bytes = random.bytes(rows * cols / ty.block_elements() * ty.block_bytes());
    tame(ty, &mut bytes);
    bytes
}

/// Activation blocks of any content with a finite scale, as a foreign machine may send them.
fn raw_q8(random: &mut Random, blocks: usize) -> Vec<BlockQ8> {
    (0..blocks)
        .map(|_| BlockQ8 {
            d: random.float(),
            q: std::array::from_fn(|_| random.byte() as i8),
        })
        .collect()
}

fn raw_q8_k(random: &mut Random, blocks: usize) -> Vec<BlockQ8K> {
    (0..blocks)
        .map(|_| BlockQ8K {
            d: random.float(),
            q: std::array::from_fn(|_| random.byte() as i8),
            bsums: std::array::from_fn(|_| random.next() as i16),
        })
        .collect()
}

/// Bits, with all NaNs alike.
fn bits(values: &[f32]) -> Vec<u32> {
    values
        .iter()
        .map(|v| if v.is_nan() { u32::MAX } else { v.to_bits() })
        .collect()
}

fn tile(kernels: Kernels, w: &Matrix<'_>, xs: &[ActRow<'_>]) -> Vec<f32> {
    let mut out = vec![f32::NAN; w.rows() * xs.len()];
    kernels.tile(w, 0..w.rows(), xs, &mut out);
    out
}

/// All instruction sets give what the scalar code gives, and the result of a token does not
/// depend on its neighbours.
fn assert_all_equal(w: &Matrix<'_>, xs: &[ActRow<'_>], what: &str) {
    let scalar = Kernels::named("scalar").unwrap();
    let expected = tile(scalar, w, xs);
    for kernels in Kernels::available() {
        let label = format!("{what}: {w:?} x {} on {}", xs.len(), kernels.name());
        assert_eq!(bits(&tile(kernels, w, xs)), bits(&expected), "{label}");
        for (t, x) in xs.iter().enumerate().take(3) {
            let alone = tile(kernels, w, &[*x]);
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
                let out = tile(kernels, &w, &[ActRow::F32(&x); 2]);
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
            let got = tile(Kernels::detect(), &w, &[acts.row(0)])[0];
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
        assert_eq!(tile(kernels, &matrix, &[ActRow::Q8K(&x)]), [-359.5625]);
        assert_eq!(
            tile(kernels, &matrix, &[ActRow::Q8K(&x); 6]),
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
            tile(kernels, &w, &[ActRow::Q8(&x)]),
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
            kernels.axpy(0.37, &a, &mut y);
            assert_eq!(bits(&y), bits(&sum), "length {len}");
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
fn every_half_widens_alike() {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for ty in [GgmlType::F16, GgmlType::BF16] {
        let mut expected = vec![0.0; 1 << 16];
        dequantize_row(ty, &bytes, &mut expected);
        for kernels in Kernels::available() {
            let w = Matrix::new(ty, 1 << 16, 1, &bytes).unwrap();
            let out = tile(kernels, &w, &[ActRow::F32(&[1.0])]);
            assert_eq!(
                bits(&out),
                bits(&expected.iter().map(|v| 0.0 + v).collect::<Vec<_>>())
            );
        }
    }
}

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
fn matmul_equals_tiles_equals_single_dots() {
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
                kernels.tile(&w, 101..110, &xs, &mut part);
                for (i, r) in (101..110).enumerate() {
                    for t in 0..tokens {
                        let mut single = [f32::NAN];
                        kernels.tile(&w, r..r + 1, &xs[t..t + 1], &mut single);
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
        assert_eq!(tile(kernels, &flat, &[ActRow::F32(&[]); 2]), [0.0; 6]);
    }
}

#[test]
#[should_panic(expected = "Q4_K weights do not meet Q8 activations")]
fn a_wrong_activation_format_is_refused() {
    let w = Matrix::new(GgmlType::Q4K, 1, 256, &[0; 144]).unwrap();
    tile(Kernels::detect(), &w, &[ActRow::Q8(&[BlockQ8::ZERO; 8])]);
}

#[test]
#[should_panic(expected = "different formats")]
fn mixed_activation_formats_are_refused() {
    let w = Matrix::new(GgmlType::Q4K, 1, 256, &[0; 144]).unwrap();
    let xs = [ActRow::Q8K(&[BlockQ8K::ZERO]), ActRow::F32(&[0.0; 256])];
    tile(Kernels::detect(), &w, &xs);
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
    let error = Kernels::named("mmx").unwrap_err().to_string();
    assert!(
        error.contains("\"mmx\"") && error.contains("scalar"),
        "{error}"
    );
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
