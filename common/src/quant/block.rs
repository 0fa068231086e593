//! What the weight formats have in common: a block as integers with their scales.
//!
//! The unpackers of the formats fill an [`IntBlock`]; dequantisation and the dot products both
//! start from it, so that there is one reading of the bytes.

use super::float::f16_to_f32;

/// A super-block of 256 weights in 16 runs of 16: weight `i` of run `k = i / 16` is
/// `d * UNIT * scales[k] * q[i] - dmin * mins[k]`, with `UNIT` of the format.
///
/// Over all formats and all bytes `|scales[k] * q[i]| <= 4096` (reached by Q6_K) and
/// `0 <= mins[k] <= 63`; with activations of 8 bits the sums over a super-block stay below 2^28.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IntBlock {
    pub(crate) d: f32,
    pub(crate) dmin: f32,
    pub(crate) scales: [i16; 16],
    pub(crate) mins: [i16; 16],
    pub(crate) q: [i8; 256],
}

impl IntBlock {
    pub(crate) const ZERO: Self = Self {
        d: 0.0,
        dmin: 0.0,
        scales: [0; 16],
        mins: [0; 16],
        q: [0; 256],
    };

    /// The integers times their scales, which fit by the bound above.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "for vector kernels")
    )]
    #[inline(always)]
    pub(crate) fn scale_into(&self, out: &mut [i16; 256]) {
        let runs = self
            .q
            .as_chunks::<16>()
            .0
            .iter()
            .zip(out.as_chunks_mut::<16>().0);
        for ((q, out), scale) in runs.zip(self.scales) {
            for (out, &q) in out.iter_mut().zip(q) {
                *out = scale.wrapping_mul(i16::from(q));
            }
        }
    }
}

/// A format of 256 weights per block.
pub(crate) trait SuperBlock {
    /// The bytes of one block.
    type Bytes: Copy + 'static;
    /// Whether `dmin` and `mins` mean anything.
    const HAS_MINS: bool;
    /// A power of two on top of `d`, kept apart because `d * UNIT` is formed last.
    const UNIT: f32 = 1.0;

    /// The whole blocks at the start of `row`.
    fn blocks(row: &[u8]) -> &[Self::Bytes];

    /// Overwrites every field of `out`, except `dmin` and `mins` of a format that has none.
    fn unpack(bytes: &Self::Bytes, out: &mut IntBlock);
}

/// A format of 32 weights per block with one scale: weight `i` is `d * q[i]`.
pub(crate) trait SmallBlock {
    /// The bytes of one block.
    type Bytes: Copy + 'static;

    /// The whole blocks at the start of `row`.
    fn blocks(row: &[u8]) -> &[Self::Bytes];

    fn scale(bytes: &Self::Bytes) -> f32;

    /// The bits of a scale that is stored as a half float; `None` for another kind of scale.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "for vector kernels")
    )]
    fn half_scale(bytes: &Self::Bytes) -> Option<u16>;

    fn integers(bytes: &Self::Bytes) -> [i8; 32];
}

/// Dequantises a row of super-blocks.
pub(crate) fn dequantize_super<F: SuperBlock>(row: &[u8], out: &mut [f32]) {
    let mut block = IntBlock::ZERO;
    for (bytes, out) in F::blocks(row).iter().zip(out.as_chunks_mut::<256>().0) {
        F::unpack(bytes, &mut block);
        let runs = block
            .q
            .as_chunks::<16>()
            .0
            .iter()
            .zip(out.as_chunks_mut::<16>().0);
        for (k, (q, out)) in runs.enumerate() {
            let scale = block.d * f32::from(block.scales[k]) * F::UNIT;
            let min = block.dmin * f32::from(block.mins[k]);
            for (out, &q) in out.iter_mut().zip(q) {
                let value = scale * f32::from(q);
                *out = if F::HAS_MINS { value - min } else { value };
            }
        }
    }
}

/// Dequantises a row of small blocks.
pub(crate) fn dequantize_small<F: SmallBlock>(row: &[u8], out: &mut [f32]) {
    for (bytes, out) in F::blocks(row).iter().zip(out.as_chunks_mut::<32>().0) {
        let d = F::scale(bytes);
        for (out, q) in out.iter_mut().zip(F::integers(bytes)) {
            *out = d * f32::from(q);
        }
    }
}

/// The half float at `at`.
#[inline(always)]
pub(crate) fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// The little-endian word at `at`.
#[inline(always)]
pub(crate) fn word_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Eight 6-bit scales and eight 6-bit mins out of the 12 bytes of a Q4_K or Q5_K block, one a
/// byte, sub-block 0 in the lowest byte.
///
/// Bytes 0..4 hold the low scales and bytes 4..8 the low mins in their lower six bits; bytes 8..12
/// hold the lower four bits of the high scales (low nibble) and mins (high nibble), whose upper
/// two bits sit on top of bytes 0..4 and 4..8. Four bytes are treated at a time.
#[inline(always)]
pub(crate) fn six_bit_pairs(packed: [u32; 3]) -> (u64, u64) {
    const SIX: u32 = 0x3f3f_3f3f;
    const FOUR: u32 = 0x0f0f_0f0f;
    const TOP: u32 = 0x3030_3030;
    let [scales, mins, rest] = packed;
    let high_scales = (rest & FOUR) | ((scales >> 2) & TOP);
    let high_mins = ((rest >> 4) & FOUR) | ((mins >> 2) & TOP);
    (
        u64::from(scales & SIX) | u64::from(high_scales) << 32,
        u64::from(mins & SIX) | u64::from(high_mins) << 32,
    )
}

/// Spreads eight bytes over 16 runs, each byte twice: sub-blocks of 32 are two runs of 16.
#[inline(always)]
pub(crate) fn twice(bytes: u64) -> [i16; 16] {
    let bytes = bytes.to_le_bytes();
    std::array::from_fn(|k| i16::from(bytes[k / 2]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packs as the format says, sub-block by sub-block.
    fn pack(scales: [u8; 8], mins: [u8; 8]) -> [u32; 3] {
        let mut sc = [0; 12];
        for j in 0..4 {
            sc[j] = scales[j] | (scales[j + 4] >> 4) << 6;
            sc[j + 4] = mins[j] | (mins[j + 4] >> 4) << 6;
            sc[j + 8] = (scales[j + 4] & 15) | (mins[j + 4] & 15) << 4;
        }
        std::array::from_fn(|w| word_at(&sc, 4 * w))
    }

    #[test]
    fn six_bit_scales_round_trip() {
        for seed in 0..64_u8 {
            let scales = std::array::from_fn(|j| seed.wrapping_add(11 * j as u8) & 63);
            let mins =
                std::array::from_fn(|j| seed.wrapping_mul(5).wrapping_add(29 * j as u8) & 63);
            let (s, m) = six_bit_pairs(pack(scales, mins));
            assert_eq!((s.to_le_bytes(), m.to_le_bytes()), (scales, mins));
        }
    }

    #[test]
    fn six_bit_scales_of_the_reference_bytes() {
        let sc: [u8; 12] = std::array::from_fn(|i| ((37 * i + 11) % 256) as u8);
        let (s, m) = six_bit_pairs(std::array::from_fn(|w| word_at(&sc, 4 * w)));
        assert_eq!(s.to_le_bytes(), [11, 48, 21, 58, 3, 8, 29, 18]);
        assert_eq!(m.to_le_bytes(), [31, 4, 41, 14, 35, 53, 55, 10]);
    }
}
