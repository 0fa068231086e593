//! Random data in every weight format, with scales that give a wanted spread.

use half::{bf16, f16};

use crate::quant::GgmlType;
use crate::random::SplitMix64;

/// What one tensor is filled with.
#[derive(Clone, Debug)]
pub(super) enum Filler {
    /// Uniform values around `center`, in a float type.
    Uniform {
        ty: GgmlType,
        center: f32,
        half_width: f32,
    },
    /// Blocks of a quantised type whose values have mean 0 and the root mean square `rms`.
    Blocks { ty: GgmlType, rms: f32 },
    /// Rows of `used` different numbers below `experts`.
    Table { used: usize, experts: usize },
}

impl Filler {
    /// Values with mean 0 and root mean square `rms`.
    pub(super) fn weights(ty: GgmlType, rms: f32) -> Self {
        match ty {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => Filler::Uniform {
                ty,
                center: 0.0,
                half_width: rms * 3f32.sqrt(),
            },
            _ => Filler::Blocks { ty, rms },
        }
    }

    pub(super) fn vector(ty: GgmlType, center: f32, half_width: f32) -> Self {
        Filler::Uniform {
            ty,
            center,
            half_width,
        }
    }

    pub(super) fn table(used: usize, experts: usize) -> Self {
        Filler::Table { used, experts }
    }

    /// Bytes that cannot be cut.
    pub(super) fn unit_bytes(&self) -> usize {
        match self {
            Filler::Uniform { ty, .. } | Filler::Blocks { ty, .. } => ty.block_bytes(),
            Filler::Table { used, .. } => used * size_of::<i32>(),
        }
    }

    /// `out` is a whole number of units.
    pub(super) fn fill(&self, rng: &mut SplitMix64, out: &mut [u8]) {
        match *self {
            Filler::Uniform {
                ty,
                center,
                half_width,
            } => {
                let value = |rng: &mut SplitMix64| center + half_width * rng.signed_unit();
                match ty {
                    GgmlType::F16 => fill_each(rng, out, |r| f16::from_f32(value(r)).to_le_bytes()),
                    GgmlType::BF16 => {
                        fill_each(rng, out, |r| bf16::from_f32(value(r)).to_le_bytes());
                    }
                    _ => fill_each(rng, out, |r| value(r).to_le_bytes()),
                }
            }
            Filler::Blocks { ty, rms } => {
                rng.bytes(out);
                for block in out.chunks_exact_mut(ty.block_bytes()) {
                    shape_block(ty, rms, rng, block);
                }
            }
            Filler::Table { used, experts } => fill_table(rng, out, used, experts),
        }
    }
}

fn fill_each<const N: usize>(
    rng: &mut SplitMix64,
    out: &mut [u8],
    mut value: impl FnMut(&mut SplitMix64) -> [u8; N],
) {
    let (values, _) = out.as_chunks_mut::<N>();
    for slot in values {
        *slot = value(rng);
    }
}

fn fill_table(rng: &mut SplitMix64, out: &mut [u8], used: usize, experts: usize) {
    let mut row: Vec<usize> = Vec::with_capacity(used);
    for bytes in out.chunks_exact_mut(used * size_of::<i32>()) {
        row.clear();
        while row.len() < used {
            let expert = rng.below(experts);
            if !row.contains(&expert) {
                row.push(expert);
            }
        }
        let (slots, _) = bytes.as_chunks_mut::<4>();
        for (slot, &expert) in slots.iter_mut().zip(&row) {
            *slot = i32::try_from(expert).unwrap_or(i32::MAX).to_le_bytes();
        }
    }
}

/// Root mean square of n evenly spaced values with step 1 around their mean.
fn spread(n: f32) -> f32 {
    ((n * n - 1.0) / 12.0).sqrt()
}

/// Root mean square of the 6-bit scales 32..=63, that of the 4-bit scales 8..=15, that of all
/// biased 6-bit scales -32..=31, and that of the odd numbers 1..=31.
const RMS_UPPER_6BIT: f32 = 48.4;
const RMS_UPPER_4BIT: f32 = 11.7;
const RMS_BIASED_6BIT: f32 = 18.5;
const RMS_ODD_TO_31: f32 = 18.5;
/// Root mean square of the magnitudes in the IQ2_XXS grid and of the codes of MXFP4.
const RMS_IQ2_GRID: f32 = 23.1;
const RMS_MXFP4: f32 = 2.93;

/// Turns a block of random bytes into a legal one. Codes stay random; scales give the wanted
/// spread, mins make the mean 0.
fn shape_block(ty: GgmlType, rms: f32, rng: &mut SplitMix64, block: &mut [u8]) {
    match ty {
        GgmlType::Q8_0 => {
            put_f16(block, 0, rms / spread(255.0));
            // -128 is a code that no quantiser writes.
            for code in &mut block[2..] {
                *code = if *code == 0x80 { 0x81 } else { *code };
            }
        }
        GgmlType::Q4K => shape_k(block, rms, 16.0, rng),
        GgmlType::Q5K => shape_k(block, rms, 32.0, rng),
        GgmlType::Q6K => {
            for scale in &mut block[192..208] {
                let magnitude = 32 + (*scale & 31);
                *scale = if *scale & 128 == 0 {
                    magnitude
                } else {
                    magnitude.wrapping_neg()
                };
            }
            put_f16(block, 208, rms / (RMS_UPPER_6BIT * spread(64.0)));
        }
        GgmlType::Q3K => put_f16(block, 108, rms / (RMS_BIASED_6BIT * spread(8.0))),
        GgmlType::Q2K => {
            for pair in &mut block[..16] {
                let scale = 8 + (*pair & 7);
                *pair = scale | (scale << 4);
            }
            let d = rms / (RMS_UPPER_4BIT * spread(4.0));
            put_f16(block, 80, d);
            put_f16(block, 82, 1.5 * d);
        }
        GgmlType::Iq2Xxs => put_f16(block, 0, 8.0 * rms / (RMS_ODD_TO_31 * RMS_IQ2_GRID)),
        GgmlType::Mxfp4 => {
            let exponent = (rms / RMS_MXFP4).log2().round().clamp(-120.0, 120.0) as i16;
            block[0] = u8::try_from(127 + exponent).unwrap_or(127);
        }
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::I32 => {}
    }
}

/// Q4_K and Q5_K: `levels` codes; every sub-block's min equals its scale, so one ratio of the two
/// super-scales centres them all.
fn shape_k(block: &mut [u8], rms: f32, levels: f32, rng: &mut SplitMix64) {
    let d = rms / (RMS_UPPER_6BIT * spread(levels));
    put_f16(block, 0, d);
    put_f16(block, 2, d * (levels - 1.0) / 2.0);
    let random = rng.next_u64().to_le_bytes();
    let scale = |j: usize| 32 + (random[j] & 31);
    for j in 0..4 {
        let (low, high) = (scale(j), scale(j + 4));
        let packed = low | ((high >> 4) << 6);
        block[4 + j] = packed;
        block[8 + j] = packed;
        block[12 + j] = (high & 15) | ((high & 15) << 4);
    }
}

fn put_f16(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}
