//! The roundings that the model was trained with: FP8 (E4M3FN) cache rows, FP4 (E2M1) index rows,
//! f16 storage. All ties go to even.

use half::f16;

/// Nearest f16, back as f32.
#[inline]
#[must_use]
pub fn round_f16(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// Rounds to E4M3FN values in blocks of 64 with a power-of-two scale each; a shorter last block is
/// a block too.
#[inline(always)]
pub fn round_e4m3_blocks(x: &mut [f32]) {
    for block in x.chunks_mut(64) {
        let amax = amax(block).max(1e-4);
        let scale = power_of_two_at_least(amax / 448.0);
        for v in block {
            *v = nearest_e4m3((*v / scale).clamp(-448.0, 448.0)) * scale;
        }
    }
}

/// Rounds to E2M1 values in blocks of 32 with a power-of-two scale each.
#[inline(always)]
pub fn round_fp4_blocks(x: &mut [f32]) {
    const FLOOR: f32 = 6.0 * f32::MIN_POSITIVE;
    for block in x.chunks_mut(32) {
        let amax = amax(block).max(FLOOR);
        let scale = power_of_two_at_least(amax / 6.0);
        for v in block {
            *v = nearest_e2m1((*v / scale).clamp(-6.0, 6.0)) * scale;
        }
    }
}

#[inline(always)]
fn amax(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |m, v| v.abs().max(m))
}

/// 2^ceil(log2(x)) for finite positive x, from the bits, so that exact powers stay.
#[inline(always)]
fn power_of_two_at_least(x: f32) -> f32 {
    let bits = x.to_bits();
    let exponent = bits >> 23;
    let mantissa = bits & 0x007f_ffff;
    if exponent == 0 {
        // Subnormal: the smallest normal power is at least as large.
        return f32::MIN_POSITIVE;
    }
    let exponent = if mantissa == 0 {
        exponent
    } else {
        (exponent + 1).min(254)
    };
    f32::from_bits(exponent << 23)
}

/// Nearest E4M3FN value of |x| <= 448: three mantissa bits, subnormal step 2^-9.
#[inline(always)]
fn nearest_e4m3(x: f32) -> f32 {
    let magnitude = x.abs();
    if magnitude < 0.015_625 {
        return (magnitude * 512.0).round_ties_even() / 512.0 * x.signum();
    }
    let step = f32::from_bits((magnitude.to_bits() & 0x7f80_0000) - (3 << 23));
    (magnitude / step).round_ties_even() * step * x.signum()
}

/// Nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 by magnitude; ties to the even table index.
#[inline(always)]
fn nearest_e2m1(x: f32) -> f32 {
    let m = x.abs();
    let step = if m < 2.0 {
        0.5
    } else if m < 4.0 {
        1.0
    } else {
        2.0
    };
    // Within each range, table index parity equals the parity of the multiple of `step`
    // (4 is index 6 and 2 * 2; 6 is index 7 and 3 * 2), so ties-to-even on multiples is the rule.
    (m / step).round_ties_even() * step * x.signum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_reference_values() {
        let cases = [
            (2f32.powi(-10), 0.0),
            (1.5 * 2f32.powi(-9), 2.0 * 2f32.powi(-9)),
            (1.0625, 1.0),
            (1.1875, 1.25),
            (17.0, 16.0),
            (19.0, 20.0),
            (232.0, 224.0),
            (247.0, 240.0),
            (248.0, 256.0),
            (-0.3, -0.3125),
        ];
        for (x, want) in cases {
            assert_eq!(nearest_e4m3(x), want, "{x}");
        }
        let mut block = [500.0, 1.0];
        round_e4m3_blocks(&mut block);
        assert_eq!(block[0], 512.0, "scale 2 holds 500 as 250 -> 256");
    }

    #[test]
    fn e2m1_ties() {
        let cases = [
            (0.25, 0.0),
            (0.75, 1.0),
            (1.25, 1.0),
            (1.75, 2.0),
            (2.5, 2.0),
            (3.5, 4.0),
            (5.0, 4.0),
            (-5.1, -6.0),
            (0.26, 0.5),
        ];
        for (x, want) in cases {
            assert_eq!(nearest_e2m1(x), want, "{x}");
        }
    }

    #[test]
    fn scales_are_exact_powers() {
        assert_eq!(power_of_two_at_least(1.0), 1.0);
        assert_eq!(power_of_two_at_least(1.0 + f32::EPSILON), 2.0);
        assert_eq!(power_of_two_at_least(0.75), 1.0);
    }

    #[test]
    fn rounding_twice_changes_nothing() {
        let mut x: Vec<f32> = (0..200)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.173)
            .collect();
        round_e4m3_blocks(&mut x);
        let once = x.clone();
        round_e4m3_blocks(&mut x);
        assert_eq!(x, once);
        round_fp4_blocks(&mut x);
        let once = x.clone();
        round_fp4_blocks(&mut x);
        assert_eq!(x, once);
    }
}
