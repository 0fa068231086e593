//! Weights and activations come from other machines: whatever their bytes are, every instruction
//! set gives the bits of scalar, or NaN where that does.

use ds4_common::kernels::{ActRow, Kernels, Matrix};
use ds4_common::quant::{ActivationFormat, BlockQ8, BlockQ8K, GgmlType};
use ds4_common::quant::{Layout, to_panels};

/// Scales that arithmetic treats specially: zeros, subnormals, infinities, NaNs, the largest.
const SPECIAL_HALVES: [u16; 8] = [
    0x0000, 0x8000, 0x0001, 0x83ff, 0x7c00, 0xfc00, 0x7e01, 0x7bff,
];
const SPECIAL_FLOATS: [u32; 8] = [
    0x0000_0000,
    0x8000_0000,
    0x0000_0001,
    0x807f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fa0_0001,
    0x7f7f_ffff,
];

/// The input's bytes over and over, since it is short; never the same run in the same place.
struct Source<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Source<'_> {
    fn byte(&mut self) -> u8 {
        let round = (self.at / self.bytes.len()) as u8;
        let byte = self.bytes[self.at % self.bytes.len()].wrapping_add(round.wrapping_mul(29));
        self.at += 1;
        byte
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    /// 1 to `most`.
    fn count(&mut self, most: usize) -> usize {
        1 + usize::from(self.byte()) % most
    }

    fn scale(&mut self) -> f32 {
        let chosen = usize::from(self.byte());
        let bits = match chosen {
            0..32 => SPECIAL_FLOATS[chosen % 8],
            _ => u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()]),
        };
        f32::from_bits(bits)
    }

    fn signed<const N: usize>(&mut self) -> [i8; N] {
        std::array::from_fn(|_| self.byte() as i8)
    }

    fn q8(&mut self, blocks: usize) -> Vec<BlockQ8> {
        let block = |source: &mut Self| BlockQ8 {
            d: source.scale(),
            q: source.signed(),
        };
        (0..blocks).map(|_| block(self)).collect()
    }

    fn q8_k(&mut self, blocks: usize) -> Vec<BlockQ8K> {
        let block = |source: &mut Self| BlockQ8K {
            d: source.scale(),
            q: source.signed(),
            bsums: std::array::from_fn(|_| i16::from_le_bytes([source.byte(), source.byte()])),
        };
        (0..blocks).map(|_| block(self)).collect()
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.scale()).collect()
    }

    /// Rows of any bytes, of which some blocks get special scales.
    fn weights(&mut self, ty: GgmlType, blocks: usize) -> Vec<u8> {
        let mut bytes = self.bytes(blocks * ty.block_bytes());
        for block in bytes.chunks_exact_mut(ty.block_bytes()) {
            for &at in halves(ty) {
                let chosen = usize::from(self.byte());
                if let Some(half) = SPECIAL_HALVES.get(chosen / 4) {
                    block[at..at + 2].copy_from_slice(&half.to_le_bytes());
                }
            }
        }
        bytes
    }
}

/// Where the half-float scales of a block lie.
fn halves(ty: GgmlType) -> &'static [usize] {
    match ty {
        GgmlType::Q8_0 | GgmlType::Iq2Xxs | GgmlType::F16 => &[0],
        GgmlType::Q4K | GgmlType::Q5K => &[0, 2],
        GgmlType::Q2K => &[80, 82],
        GgmlType::Q3K => &[108],
        GgmlType::Q6K => &[208],
        _ => &[],
    }
}

/// Compares all instruction sets on the rows of `w`, in the output row by row and token by token,
/// and in blocks of 256 columns where `parts` holds the activations for that; on `panels` too.
fn compare(w: &Matrix<'_>, panels: Option<&Matrix<'_>>, xs: &[ActRow<'_>], parts: &[ActRow<'_>]) {
    let all = Kernels::available();
    let both = [Some(w), panels].into_iter().flatten();
    let runs = both.flat_map(|w| all.iter().map(move |kernels| (kernels, w)));
    let mut results = runs.map(|(kernels, w)| {
        let whole = w.rows() * xs.len();
        let mut out = vec![0.0; 2 * whole + w.rows() * parts.len()];
        let (by_row, rest) = out.split_at_mut(whole);
        let (by_token, in_parts) = rest.split_at_mut(whole);
        kernels.multiply_row_by_row(w, 0..w.rows(), xs, by_row);
        kernels.multiply_rows(w, 0..w.rows(), xs, None, by_token);
        kernels.multiply_rows_by_block(w, 0..w.rows(), parts, None, in_parts);
        (kernels.name(), out)
    });
    let (_, scalar) = results.next().expect("always there");
    for (name, found) in results {
        for (i, (a, b)) in found.iter().zip(&scalar).enumerate() {
            // Which NaN a result is stays open.
            let same = a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            assert!(
                same,
                "{name}, {w:?}, {} tokens, result {i}: {a} is not {b}",
                xs.len()
            );
        }
    }
}

/// `data` chooses the weight type, the shape, the weights and the activations, in this order.
pub fn run(data: &[u8]) -> bool {
    if data.is_empty() {
        return false;
    }
    let mut source = Source { bytes: data, at: 0 };
    let ty = GgmlType::ALL[usize::from(source.byte()) % GgmlType::ALL.len()];
    // Sixteens of rows and fours of tokens, and what is left of them.
    let (rows, tokens) = (source.count(35), source.count(19));
    let blocks = source.count(20).min(5120 / ty.block_elements());
    let cols = blocks * ty.block_elements();
    let bytes = source.weights(ty, rows * blocks);
    let w = Matrix::new(ty, rows, cols, &bytes).expect("exact bytes");
    let mut turned = bytes.clone();
    let panels = Layout::Panels.fits(ty, rows as u64).then(|| {
        to_panels(&bytes, bytes.len() / rows, &mut turned);
        Matrix::stored(Layout::Panels, ty, rows, cols, &turned).expect("exact bytes")
    });
    let panels = panels.as_ref();
    match ty.activation_format() {
        ActivationFormat::Q8 => {
            let x: Vec<_> = (0..tokens).map(|_| source.q8(blocks)).collect();
            let xs: Vec<_> = x.iter().map(|x| ActRow::Q8(x)).collect();
            let parts: Vec<_> = (0..blocks.div_ceil(8))
                .flat_map(|b| {
                    x.iter()
                        .map(move |x| ActRow::Q8(&x[8 * b..x.len().min(8 * b + 8)]))
                })
                .collect();
            compare(&w, panels, &xs, &parts);
        }
        ActivationFormat::Q8K => {
            let x: Vec<_> = (0..tokens).map(|_| source.q8_k(blocks)).collect();
            let xs: Vec<_> = x.iter().map(|x| ActRow::Q8K(x)).collect();
            let parts: Vec<_> = (0..blocks)
                .flat_map(|b| x.iter().map(move |x| ActRow::Q8K(&x[b..=b])))
                .collect();
            compare(&w, panels, &xs, &parts);
        }
        ActivationFormat::F32 => {}
    }
    let x: Vec<_> = (0..tokens).map(|_| source.floats(cols)).collect();
    let xs: Vec<_> = x.iter().map(|x| ActRow::F32(x)).collect();
    compare(&w, panels, &xs, &[]);
    true
}
