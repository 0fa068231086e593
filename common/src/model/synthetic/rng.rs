//! The random numbers of synthetic models.

/// A counter whose steps are mixed (SplitMix64): fast, and any seed is a good one.
#[derive(Clone, Debug)]
pub(super) struct SplitMix(u64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl SplitMix {
    /// The generator of one name under one seed.
    pub(super) fn named(seed: u64, name: &str) -> Self {
        let start = mix(seed.wrapping_add(STEP));
        Self(name.bytes().fold(start, |state, byte| {
            mix(state ^ u64::from(byte)).wrapping_add(STEP)
        }))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// Below `limit`, which is not 0.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        // The high half of a product of 64-bit numbers is below either factor.
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }

    /// From -1 (included) to 1.
    pub(super) fn signed_unit(&mut self) -> f32 {
        const SCALE: f32 = 1.0 / (1 << 23) as f32;
        (self.next() >> 40) as f32 * SCALE - 1.0
    }

    pub(super) fn bytes(&mut self, out: &mut [u8]) {
        let (words, tail) = out.as_chunks_mut::<8>();
        for word in words {
            *word = self.next().to_le_bytes();
        }
        let last = self.next().to_le_bytes();
        tail.copy_from_slice(&last[..tail.len()]);
    }
}
