//! IQ2_XXS: `f16 d; u16 qs[32]`. Eight bytes hold 32 values: four grid indices of 8 values each,
//! then a word with four 7-bit sign indices and a 4-bit scale `S` on top. The factor of the 32
//! values is `d * (2S + 1) / 8`.

use super::block::{IntBlock, SuperBlock, half_at};

/// The grid of magnitudes: bits `2j` and `2j + 1` of an entry choose magnitude `j` of 8 out of 8,
/// 25 and 43. Part of the format.
#[rustfmt::skip]
const GRID: [u16; 256] = [
    0x0000, 0x0002, 0x0005, 0x0008, 0x000a, 0x0011, 0x0014, 0x0020, 0x0022, 0x0028, 0x002a, 0x0041,
    0x0044, 0x0050, 0x0058, 0x0061, 0x0064, 0x0080, 0x0082, 0x008a, 0x00a2, 0x0101, 0x0104, 0x0110,
    0x0115, 0x0140, 0x0184, 0x0198, 0x0200, 0x0202, 0x0222, 0x0282, 0x0401, 0x0404, 0x0410, 0x0421,
    0x0424, 0x0440, 0x0442, 0x0448, 0x0460, 0x0481, 0x0484, 0x0490, 0x04a4, 0x0500, 0x0502, 0x0508,
    0x0520, 0x0546, 0x0569, 0x0580, 0x0591, 0x0609, 0x0610, 0x0640, 0x0684, 0x06a4, 0x0800, 0x0805,
    0x0808, 0x0814, 0x0828, 0x0841, 0x0844, 0x0850, 0x0852, 0x0888, 0x0904, 0x0940, 0x0a02, 0x0a14,
    0x1001, 0x1004, 0x1010, 0x1021, 0x1040, 0x1060, 0x1084, 0x1090, 0x1095, 0x1100, 0x1108, 0x1120,
    0x1150, 0x115a, 0x1180, 0x1224, 0x1245, 0x1400, 0x1408, 0x1420, 0x1425, 0x1449, 0x1480, 0x1518,
    0x1562, 0x1600, 0x1616, 0x1801, 0x1804, 0x1810, 0x1840, 0x1881, 0x1900, 0x1905, 0x19a0, 0x1a51,
    0x2000, 0x2002, 0x200a, 0x2044, 0x2061, 0x2080, 0x2082, 0x2129, 0x2148, 0x2200, 0x2202, 0x2401,
    0x2404, 0x2410, 0x2440, 0x2456, 0x2500, 0x2541, 0x2564, 0x2690, 0x2808, 0x2820, 0x2894, 0x2a44,
    0x4001, 0x4004, 0x4010, 0x4018, 0x4021, 0x4024, 0x4040, 0x4048, 0x4056, 0x4060, 0x4081, 0x4084,
    0x4090, 0x4100, 0x4120, 0x4161, 0x4180, 0x4185, 0x4201, 0x4210, 0x4248, 0x4256, 0x4268, 0x4400,
    0x4408, 0x4420, 0x4480, 0x4499, 0x4512, 0x4524, 0x4600, 0x4801, 0x4804, 0x4810, 0x4840, 0x4845,
    0x4900, 0x4958, 0x4961, 0x4982, 0x4a45, 0x4a90, 0x5000, 0x5008, 0x5011, 0x5019, 0x5020, 0x5080,
    0x5088, 0x5104, 0x5142, 0x51a4, 0x5291, 0x5490, 0x5492, 0x550a, 0x5601, 0x5654, 0x5800, 0x5811,
    0x5819, 0x5864, 0x5940, 0x5a08, 0x6004, 0x6010, 0x6040, 0x6068, 0x6100, 0x6155, 0x6218, 0x6260,
    0x6400, 0x6405, 0x6510, 0x6512, 0x6584, 0x6842, 0x8000, 0x8002, 0x800a, 0x8041, 0x8082, 0x8104,
    0x8118, 0x8140, 0x8211, 0x8401, 0x8404, 0x8410, 0x8415, 0x8440, 0x8460, 0x8500, 0x8546, 0x8594,
    0x8609, 0x8640, 0x8660, 0x8802, 0x8904, 0x8a11, 0x9004, 0x9010, 0x9024, 0x9040, 0x90a1, 0x9116,
    0x9180, 0x9245, 0x9400, 0x9422, 0x9444, 0x9551, 0x9881, 0x9920, 0xa002, 0xa050, 0xa085, 0xa109,
    0xa200, 0xa418, 0xa850, 0xa904,
];

/// [`GRID`] spelled out, one magnitude a byte, magnitude 0 in the lowest.
const MAGNITUDES: [u64; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut j = 0;
        while j < 8 {
            let magnitude = match GRID[i] >> (2 * j) & 3 {
                0 => 8,
                1 => 25,
                _ => 43,
            };
            table[i] |= magnitude << (8 * j);
            j += 1;
        }
        i += 1;
    }
    table
};

/// For each 7-bit sign index a mask with all bits of byte `j` set where value `j` is negative;
/// the sign of value 7 makes the number of negatives even.
const SIGN_MASKS: [u64; 128] = {
    let mut table = [0; 128];
    let mut i = 0;
    while i < 128 {
        let signs = (i as u32) | (((i as u32).count_ones() % 2) << 7);
        let mut j = 0;
        while j < 8 {
            if signs >> j & 1 == 1 {
                table[i] |= 0xff << (8 * j);
            }
            j += 1;
        }
        i += 1;
    }
    table
};

pub(crate) struct Iq2Xxs;

impl SuperBlock for Iq2Xxs {
    type Bytes = [u8; 66];
    const HAS_MINS: bool = false;
    const UNIT: f32 = 0.125;

    #[inline(always)]
    fn blocks(row: &[u8]) -> &[Self::Bytes] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn unpack(bytes: &Self::Bytes, out: &mut IntBlock) {
        out.d = half_at(bytes, 0);
        let groups = bytes[2..]
            .as_chunks::<8>()
            .0
            .iter()
            .zip(out.q.as_chunks_mut::<32>().0);
        for (j, (group, q)) in groups.enumerate() {
            let (magnitudes, masks, scale) = Self::look_up(group);
            out.scales[2 * j..2 * j + 2].fill(scale);
            for (l, q) in q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                // Two's complement, byte by byte: flip all bits and add one. No magnitude is zero,
                // so no byte carries into the next.
                let negated = (magnitudes[l] ^ masks[l]) + (masks[l] & 0x0101_0101_0101_0101);
                *q = negated.to_le_bytes().map(|b| b as i8);
            }
        }
    }
}

impl Iq2Xxs {
    /// The magnitudes of 32 values, one a byte; masks with all bits set in the bytes of negative
    /// ones; and their scale.
    #[inline(always)]
    pub(crate) fn look_up(group: &[u8; 8]) -> ([u64; 4], [u64; 4], i16) {
        let [a, b, c, d, word @ ..] = *group;
        let word = u32::from_le_bytes(word);
        (
            [a, b, c, d].map(|index| MAGNITUDES[usize::from(index)]),
            std::array::from_fn(|l| SIGN_MASKS[(word >> (7 * l) & 127) as usize]),
            2 * (word >> 28) as i16 + 1,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_has_three_magnitudes_and_no_entry_twice() {
        assert!(GRID.iter().all(|e| (0..8).all(|j| e >> (2 * j) & 3 != 3)));
        assert!((1..256).all(|i| !GRID[..i].contains(&GRID[i])));
    }

    #[test]
    fn signs_and_scale_come_from_the_word() {
        let mut bytes = [0; 66];
        bytes[1] = 0x3c;
        // Group 1 of the first 32 values takes sign index 0b11 and so the even parity, group 2
        // takes 0b1 and flips its last value; the scale nibble is 15.
        bytes[6..10].copy_from_slice(&(15_u32 << 28 | 1 << 14 | 3 << 7).to_le_bytes());
        let mut block = IntBlock::ZERO;
        Iq2Xxs::unpack(&bytes, &mut block);
        assert_eq!((block.d, &block.scales[..3]), (1.0, &[31, 31, 1][..]));
        assert_eq!(block.q[..8], [8; 8]);
        assert_eq!(block.q[8..16], [-8, -8, 8, 8, 8, 8, 8, 8]);
        assert_eq!(block.q[16..24], [-8, 8, 8, 8, 8, 8, 8, -8]);
    }
}
