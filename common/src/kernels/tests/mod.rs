//! What the tests of the kernels share: random weights and activations of every type.

mod dense;
mod equal;
mod panels;
mod shapes;
mod values;
mod wild;

use super::{ActRow, Kernels, Matrix};
use crate::quant::{BlockQ8, BlockQ8K, GgmlType};

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

fn by_row(kernels: Kernels, w: &Matrix<'_>, xs: &[ActRow<'_>]) -> Vec<f32> {
    let mut out = vec![f32::NAN; w.rows() * xs.len()];
    kernels.multiply_row_by_row(w, 0..w.rows(), xs, &mut out);
    out
}

/// The same results, in the same order, by way of [`Kernels::multiply_rows`].
fn by_token(kernels: Kernels, w: &Matrix<'_>, xs: &[ActRow<'_>]) -> Vec<f32> {
    let (rows, tokens) = (w.rows(), xs.len());
    let mut out = vec![f32::NAN; rows * tokens];
    kernels.multiply_rows(w, 0..rows, xs, Some(w), &mut out);
    (0..rows * tokens)
        .map(|i| out[i % tokens * rows + i / tokens])
        .collect()
}
