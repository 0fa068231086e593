//! Pseudo-random numbers that a seed determines, on every machine and in every version.

/// xorshift64* with the shifts 12, 25 and 27: period 2^64 - 1.
///
/// Source: S. Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled",
/// ACM Transactions on Mathematical Software 42(4), 2016.
#[derive(Clone, Debug)]
pub struct XorShift64Star(u64);

impl XorShift64Star {
    /// Starts at `seed`. The state 0 would never change, so another constant stands in for it.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(if seed == 0 { GOLDEN_RATIO } else { seed })
    }

    /// The next number, all 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// At least 0 and below 1, from the highest 24 bits of the next number.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 40) as f64 / f64::from(1u32 << 24)
    }
}

/// `SplitMix64`, a counter whose values are mixed: period 2^64, and every seed is a good one.
///
/// Source: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators",
/// OOPSLA 2014.
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

/// The fractional part of the golden ratio, times 2^64.
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl SplitMix64 {
    /// Starts at `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A stream of its own for every `name` under one seed.
    #[must_use]
    pub fn named(seed: u64, name: &str) -> Self {
        let start = mix(seed.wrapping_add(GOLDEN_RATIO));
        Self(name.bytes().fold(start, |state, byte| {
            mix(state ^ u64::from(byte)).wrapping_add(GOLDEN_RATIO)
        }))
    }

    /// The next number, all 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN_RATIO);
        mix(self.0)
    }

    /// From 0 to `limit - 1`; `limit` is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        // The high half of a product of 64-bit numbers is below either factor.
        ((u128::from(self.next_u64()) * limit as u128) >> 64) as usize
    }

    /// At least 0 and below 1, from the highest 53 bits of the next number.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True for `share` of the calls; a share of 0 or less takes no number.
    pub fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && self.unit() < share
    }

    /// At least -1 and below 1, in steps of 2^-23.
    pub fn signed_unit(&mut self) -> f32 {
        const SCALE: f32 = 1.0 / (1 << 23) as f32;
        (self.next_u64() >> 40) as f32 * SCALE - 1.0
    }

    /// Fills `out`; eight bytes a number, little-endian.
    pub fn bytes(&mut self, out: &mut [u8]) {
        let (words, tail) = out.as_chunks_mut::<8>();
        for word in words {
            *word = self.next_u64().to_le_bytes();
        }
        let last = self.next_u64().to_le_bytes();
        tail.copy_from_slice(&last[..tail.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::{SplitMix64, XorShift64Star};

    #[test]
    fn the_generators_give_the_known_numbers() {
        let mut random = XorShift64Star::new(1);
        let numbers = [(); 3].map(|()| random.next_u64());
        let known = [
            0x47e4_ce4b_896c_dd1d,
            0xabcf_a6a8_e079_651d,
            0xb9d1_0d8f_eb73_1f57,
        ];
        assert_eq!(numbers, known);
        assert_eq!(XorShift64Star::new(0).next_u64(), 0x0d83_b3e2_9a21_487a);

        let mut random = SplitMix64::new(1_234_567);
        let numbers = [(); 3].map(|()| random.next_u64());
        let known = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!(numbers, known);
    }
}
