//! MXFP4: `u8 e; u8 qs[16]`. Scale `2^(e - 127)` over the 4-bit floats 0, .5, 1, 1.5, 2, 3, 4, 6
//! and their negatives; element `j` is the low nibble of byte `j`, element `j + 16` the high one.

use super::block::SmallBlock;

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
    fn half_scale(_: &Self::Bytes) -> Option<u16> {
        None
    }

    /// Twice the values, so that they are integers; [`Self::scale`] is halved in return.
    #[inline(always)]
    fn integers(bytes: &Self::Bytes) -> [i8; 32] {
        let mut q = [0; 32];
        for j in 0..16 {
            q[j] = twice_value(bytes[1 + j] & 15);
            q[j + 16] = twice_value(bytes[1 + j] >> 4);
        }
        q
    }
}

/// 0, 1, 2, 3, 4, 6, 8, 12 for codes 0 to 7, negated from 8 on. Steps of one that become two
/// from 4 on and four from 6 on need no table, so that the loop vectorises.
#[inline(always)]
fn twice_value(code: u8) -> i8 {
    let index = code & 7;
    let magnitude = index + index.saturating_sub(4) + 2 * index.saturating_sub(6);
    let sign = (code >> 3) as i8;
    (magnitude as i8 ^ -sign) + sign
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

    #[test]
    fn codes_are_twice_the_values() {
        let halves = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for code in 0..16_u8 {
            let sign = if code < 8 { 2.0 } else { -2.0 };
            assert_eq!(
                f32::from(twice_value(code)),
                sign * halves[usize::from(code) % 8]
            );
        }
    }
}
