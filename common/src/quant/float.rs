//! The two 16-bit float formats and the plain types.

use half::{bf16, f16};

/// Exact value of a half float.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    // The const version is plain integer code; the other one asks the CPU on every call.
    f16::from_bits(bits).to_f32_const()
}

/// Exact value of a bfloat16.
#[inline(always)]
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    bf16::from_bits(bits).to_f32_const()
}

pub(crate) fn widen_f16(row: &[u8], out: &mut [f32]) {
    for (out, &bytes) in out.iter_mut().zip(row.as_chunks::<2>().0) {
        *out = f16_to_f32(u16::from_le_bytes(bytes));
    }
}

pub(crate) fn widen_bf16(row: &[u8], out: &mut [f32]) {
    for (out, &bytes) in out.iter_mut().zip(row.as_chunks::<2>().0) {
        *out = bf16_to_f32(u16::from_le_bytes(bytes));
    }
}

pub(crate) fn read_f32(row: &[u8], out: &mut [f32]) {
    for (out, &bytes) in out.iter_mut().zip(row.as_chunks::<4>().0) {
        *out = f32::from_le_bytes(bytes);
    }
}

pub(crate) fn read_i32(row: &[u8], out: &mut [f32]) {
    for (out, &bytes) in out.iter_mut().zip(row.as_chunks::<4>().0) {
        *out = i32::from_le_bytes(bytes) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_read_exactly() {
        for bits in 0..=u16::MAX {
            let value = f16_to_f32(bits);
            let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
            let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
            let expected = match exponent {
                0 => sign * fraction * 2_f64.powi(-24),
                31 if fraction == 0.0 => sign * f64::INFINITY,
                31 => f64::NAN,
                e => sign * (1024.0 + fraction) * 2_f64.powi(e - 25),
            };
            let same = f64::from(value) == expected || value.is_nan() && expected.is_nan();
            assert!(same, "{bits:#06x}: {value} for {expected}");
        }
    }

    #[test]
    fn bfloat_is_the_upper_half_of_f32() {
        let mut out = [0.0; 2];
        widen_bf16(&[0xc0, 0x3f, 0x80, 0xff], &mut out);
        assert_eq!(out, [1.5, f32::NEG_INFINITY]);
    }
}
