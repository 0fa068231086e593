//! Q4_K: `f16 d; f16 dmin; u8 sc[12]; u8 qs[128]`. Eight sub-blocks of 32 with 6-bit scales and
//! mins; two sub-blocks share 32 bytes, the even one in the low nibbles.

use super::block::{IntBlock, SuperBlock, half_at, six_bit_pairs, twice, word_at};

pub(crate) struct Q4K;

impl SuperBlock for Q4K {
    type Bytes = [u8; 144];
    const HAS_MINS: bool = true;

    #[inline(always)]
    fn blocks(row: &[u8]) -> &[Self::Bytes] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn unpack(bytes: &Self::Bytes, out: &mut IntBlock) {
        let (scales, mins) = q4_k_scales(bytes);
        out.d = half_at(bytes, 0);
        out.dmin = half_at(bytes, 2);
        out.scales = twice(scales);
        out.mins = twice(mins);
        let pairs = bytes[16..]
            .as_chunks::<32>()
            .0
            .iter()
            .zip(out.q.as_chunks_mut::<64>().0);
        for (qs, q) in pairs {
            for l in 0..32 {
                q[l] = (qs[l] & 15) as i8;
                q[l + 32] = (qs[l] >> 4) as i8;
            }
        }
    }
}

/// The scales and mins of the eight sub-blocks, one a byte.
#[inline(always)]
pub(crate) fn q4_k_scales(bytes: &[u8; 144]) -> (u64, u64) {
    six_bit_pairs([word_at(bytes, 4), word_at(bytes, 8), word_at(bytes, 12)])
}
