//! Checksums of numbers on their way between machines: 64-bit XXH3 over their little-endian bytes.
//! They find what went wrong by accident, not what somebody forged: TLS is for that.

use std::hash::Hasher;

use twox_hash::XxHash3_64;

/// Bytes that are hashed at once: they stay in the nearest cache.
const RUN: usize = 1024;

/// The bits of a float's exponent: all of them are set in infinity and NaN alone.
const EXPONENT: u32 = 0x7f80_0000;

/// A checksum in the making. What is added is hashed as one sequence of bytes.
#[derive(Clone)]
pub struct Checksum(XxHash3_64);

impl std::fmt::Debug for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Checksum")
    }
}

impl Checksum {
    /// A checksum of nothing yet; another `seed` gives another checksum of the same bytes.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Checksum(XxHash3_64::with_seed(seed))
    }

    /// Adds the eight bytes of a number.
    pub fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    /// Adds bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// Adds the bits of floats.
    pub fn floats(&mut self, values: &[f32]) {
        for run in values.chunks(RUN / 4) {
            let mut raw = [0; RUN];
            for (bytes, value) in raw.as_chunks_mut::<4>().0.iter_mut().zip(run) {
                *bytes = value.to_le_bytes();
            }
            self.bytes(&raw[..run.len() * 4]);
        }
    }

    /// Adds the bytes of floats in the form that travels. Returns whether all of them are finite;
    /// bytes after the last whole float count as such.
    pub fn wire_floats(&mut self, bytes: &[u8]) -> bool {
        let mut finite = true;
        for run in bytes.chunks(4 * RUN) {
            let floats = run.as_chunks::<4>().0.iter();
            finite &= are_finite(floats.map(|raw| u32::from_le_bytes(*raw)));
            self.bytes(run);
        }
        finite
    }

    /// The checksum; never 0, which stands for none.
    #[must_use]
    pub fn finish(self) -> u64 {
        self.0.finish().max(1)
    }
}

/// Whether none of `values` is infinite or NaN.
#[must_use]
pub fn all_finite(values: &[f32]) -> bool {
    are_finite(values.iter().map(|value| value.to_bits()))
}

/// Without an early end, so that the loop becomes vector instructions.
fn are_finite(bits: impl Iterator<Item = u32>) -> bool {
    bits.fold(0, |bad, bits| bad | u32::from(bits & EXPONENT == EXPONENT)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Vec<f32> {
        (0..1001).map(|i| (i as f32 - 500.0) * 0.37).collect()
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn of(seed: u64, add: impl FnOnce(&mut Checksum)) -> u64 {
        let mut checksum = Checksum::new(seed);
        add(&mut checksum);
        checksum.finish()
    }

    #[test]
    fn floats_count_as_their_bytes_and_the_seed_counts() {
        let (values, bytes) = (values(), bytes(&values()));
        let expected = of(3, |sum| sum.bytes(&bytes));
        assert_eq!(of(3, |sum| sum.floats(&values)), expected);
        let mut finite = false;
        let found = of(3, |sum| finite = sum.wire_floats(&bytes));
        assert!(found == expected && finite);
        assert_ne!(of(4, |sum| sum.bytes(&bytes)), expected);
        let parts = of(3, |sum| {
            sum.bytes(&bytes[..13]);
            sum.bytes(&bytes[13..]);
        });
        assert_eq!(parts, expected, "one sequence, however it is added");
    }

    #[test]
    fn any_flipped_bit_shows() {
        let right = bytes(&values());
        let expected = of(9, |sum| sum.bytes(&right));
        for bit in (0..right.len() * 8).step_by(7) {
            let mut wrong = right.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(of(9, |sum| sum.bytes(&wrong)), expected, "bit {bit}");
        }
    }

    #[test]
    fn infinity_and_nan_are_found_wherever_they_are() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 1, 255, 999, 1000] {
                let mut values = values();
                assert!(all_finite(&values));
                values[at] = wrong;
                assert!(!all_finite(&values), "{wrong} at {at}");
                assert!(!Checksum::new(0).wire_floats(&bytes(&values)));
            }
        }
        assert!(all_finite(&[f32::MAX, f32::MIN_POSITIVE, -0.0]) && all_finite(&[]));
    }
}
