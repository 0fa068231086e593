//! MXFP4: `u8 e; u8 qs[16]`. Scale `2^(e - 127)` over the 4-bit floats 0, .5, 1, 1.5, 2, 3, 4, 6
//! and their negatives; element `j` is the low nibble of byte `j`, element `j + 16` the high one.

use super::block::SmallBlock;

/// Twice the 4-bit floats, so that they are integers; the scale is halved in return.
pub(crate) const CODES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

pub(crate) struct Mxfp4;

impl SmallBlock for Mxfp4 {
    type Bytes = [u8; 17];

    #[inline(always)]
    fn blocks(row: &[u8]) -> &[Self::Bytes] {
        row.as_chunks().0
    }

    /// `2^(e - 128)`, exactly: a normal float has the exponent field `e - 1`, which leaves two
    /// subnormal powers for `e` of 0 and 1.
    #[inline(always)]
    fn scale(bytes: &Self::Bytes) -> f32 {
        let e = u32::from(bytes[0]);
        f32::from_bits(if e < 2 { 1 << (21 + e) } else { (e - 1) << 23 })
    }

    #[inline(always)]
    fn integers(bytes: &Self::Bytes) -> [i8; 32] {
        std::array::from_fn(|i| {
            let byte = bytes[1 + i % 16];
            CODES[usize::from(if i < 16 { byte & 15 } else { byte >> 4 })]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_a_power_of_two_for_every_exponent() {
        for e in 0..=255_u8 {
            let scale = Mxfp4::scale(&[e; 17]);
            assert_eq!(f64::from(scale), 2_f64.powi(i32::from(e) - 128), "e = {e}");
        }
    }
}
