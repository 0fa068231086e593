//! Activation blocks: what float activations become before quantised weights multiply them.
//!
//! Both quantisers round half to even and share one rule for values that have no place on the
//! grid: a block that holds a NaN or an infinity gets `d = NaN` and all-zero integers, so that
//! every dot product with it is NaN and no other block is affected. A block whose largest value is
//! too small for its scale or the scale's inverse to be a finite nonzero float is all zero.

/// 32 activations with one scale. The scale stays f32, unlike a stored Q8_0 block.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct BlockQ8 {
    /// Scale: a value is `d * q`.
    pub d: f32,
    /// The 32 values, quantised.
    pub q: [i8; 32],
}

/// 256 activations with one scale and the sum of each run of 16, which the mins of the K-quants
/// multiply. The scale is negative where the value of the largest magnitude is positive.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct BlockQ8K {
    /// Scale: a value is `d * q`.
    pub d: f32,
    /// The 256 values, quantised.
    pub q: [i8; 256],
    /// Sum of each run of 16 values of `q`.
    pub bsums: [i16; 16],
}

impl BlockQ8 {
    /// 32 zeros.
    pub const ZERO: Self = Self { d: 0.0, q: [0; 32] };
}

impl BlockQ8K {
    /// 256 zeros.
    pub const ZERO: Self = Self {
        d: 0.0,
        q: [0; 256],
        bsums: [0; 16],
    };
}

/// Quantises `x` in blocks of 32: `d = max|x| / 127`, `q = round_half_even(x / d)`.
///
/// # Panics
/// `x` is not exactly `32 * out.len()` values.
#[inline(always)]
pub fn quantize_q8(x: &[f32], out: &mut [BlockQ8]) {
    assert_eq!(x.len(), 32 * out.len(), "values for whole Q8 blocks");
    for (values, block) in x.as_chunks::<32>().0.iter().zip(out) {
        *block = quantize_block_q8(values);
    }
}

/// Quantises `x` in super-blocks of 256: with `m` the signed value of the largest magnitude (the
/// first one on ties) and `s = -127 / m`, `q = clamp(round_half_even(s * x), -128, 127)` and
/// `d = 1 / s`.
///
/// # Panics
/// `x` is not exactly `256 * out.len()` values.
#[inline(always)]
pub fn quantize_q8_k(x: &[f32], out: &mut [BlockQ8K]) {
    assert_eq!(x.len(), 256 * out.len(), "values for whole Q8_K blocks");
    for (values, block) in x.as_chunks::<256>().0.iter().zip(out) {
        *block = quantize_block_q8_k(values);
    }
}

#[inline(always)]
fn quantize_block_q8(x: &[f32; 32]) -> BlockQ8 {
    let Some(amax) = finite_magnitude(x) else {
        return BlockQ8 {
            d: f32::NAN,
            ..BlockQ8::ZERO
        };
    };
    let d = amax / 127.0;
    if d == 0.0 {
        return BlockQ8::ZERO;
    }
    let mut q = [0; 32];
    for (q, &x) in q.iter_mut().zip(x) {
        // A subnormal scale is so coarse that the quotient may pass 127.
        *q = round_small((x / d).clamp(-127.0, 127.0)) as i8;
    }
    BlockQ8 { d, q }
}

#[inline(always)]
fn quantize_block_q8_k(x: &[f32; 256]) -> BlockQ8K {
    let Some(amax) = finite_magnitude(x) else {
        return BlockQ8K {
            d: f32::NAN,
            ..BlockQ8K::ZERO
        };
    };
    let m = x.iter().copied().find(|v| v.abs() == amax).unwrap_or(0.0);
    let inverse = -127.0 / m;
    if amax == 0.0 || !inverse.is_finite() {
        return BlockQ8K::ZERO;
    }
    let mut block = BlockQ8K {
        d: 1.0 / inverse,
        ..BlockQ8K::ZERO
    };
    for (q, &x) in block.q.iter_mut().zip(x) {
        *q = round_small((inverse * x).clamp(-128.0, 127.0)) as i8;
    }
    for (sum, run) in block.bsums.iter_mut().zip(block.q.as_chunks::<16>().0) {
        *sum = run.iter().map(|&q| i16::from(q)).sum();
    }
    block
}

/// The largest magnitude, or `None` if a value is NaN or infinite. Works on the bits, whose order
/// is that of the magnitudes, so that the loop vectorises and a NaN cannot hide.
#[inline(always)]
fn finite_magnitude(x: &[f32]) -> Option<f32> {
    let bits = x.iter().fold(0, |max: u32, v| max.max(v.abs().to_bits()));
    Some(f32::from_bits(bits)).filter(|v| v.is_finite())
}

/// Round half to even for `|v| < 2^22`: at this offset the spacing of f32 is one, so the addition
/// itself rounds. Vectorises on every target, where the library call does not.
#[inline(always)]
fn round_small(v: f32) -> f32 {
    const OFFSET: f32 = 12_582_912.0;
    (v + OFFSET) - OFFSET
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_q8_k(x: &[f32; 256]) -> BlockQ8K {
        let mut out = [BlockQ8K::ZERO];
        quantize_q8_k(x, &mut out);
        out[0]
    }

    fn one_q8(x: &[f32; 32]) -> BlockQ8 {
        let mut out = [BlockQ8::ZERO];
        quantize_q8(x, &mut out);
        out[0]
    }

    #[test]
    fn q8_k_of_a_ramp_has_the_known_values() {
        let block = one_q8_k(&std::array::from_fn(|i| i as f32 - 100.0));
        assert_eq!(block.d, -1.220_472_4);
        assert_eq!(block.q[..4], [82, 81, 80, 79]);
        assert_eq!(block.q[99..103], [1, 0, -1, -2]);
        assert_eq!(block.q[255], -127);
        assert_eq!(block.bsums[..3], [1212, 1003, 793]);
    }

    #[test]
    fn the_first_of_equal_magnitudes_gives_the_sign() {
        let mut x = [0.0; 256];
        (x[7], x[9]) = (-2.0, 2.0);
        let block = one_q8_k(&x);
        assert!(block.d > 0.0);
        assert_eq!((block.q[7], block.q[9]), (-127, 127));
        x.swap(7, 9);
        assert!(one_q8_k(&x).d < 0.0);
    }

    #[test]
    fn halves_round_to_even() {
        let mut x = [0.0; 32];
        x[..6].copy_from_slice(&[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]);
        assert_eq!(one_q8(&x).q[..6], [127, 0, 2, 2, 0, -2]);
    }

    #[test]
    fn zeros_and_vanishing_values_give_zero_blocks() {
        assert_eq!(one_q8(&[-0.0; 32]), BlockQ8::ZERO);
        assert_eq!(one_q8_k(&[0.0; 256]), BlockQ8K::ZERO);
        assert_eq!(one_q8(&[1e-45; 32]), BlockQ8::ZERO);
        assert_eq!(one_q8_k(&[1e-40; 256]), BlockQ8K::ZERO);
        assert_eq!(one_q8(&[2e-43; 32]).q, [127; 32]);
    }

    #[test]
    fn a_value_off_the_grid_makes_its_block_nan_and_no_other() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; 512];
            x[300] = bad;
            let mut blocks = [BlockQ8K::ZERO; 2];
            quantize_q8_k(&x, &mut blocks);
            assert!(blocks[0].d.is_finite() && blocks[1].d.is_nan());
            assert_eq!(blocks[1].q, [0; 256]);
            let mut blocks = [BlockQ8::ZERO; 16];
            quantize_q8(&x, &mut blocks);
            assert!(blocks[9].d.is_nan());
            assert_eq!(blocks.iter().filter(|b| b.d.is_nan()).count(), 1);
        }
    }

    #[test]
    fn the_largest_floats_stay_finite() {
        let block = one_q8_k(&[f32::MAX; 256]);
        assert!(block.d.is_finite());
        assert_eq!(block.q, [-127; 256]);
        assert_eq!(block.bsums, [-127 * 16; 16]);
        assert_eq!(one_q8(&[f32::MIN; 32]).q, [-127; 32]);
    }
}
