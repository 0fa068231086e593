//! Q2_K: `u8 sc[16]; u8 qs[64]; f16 d; f16 dmin`. Sub-blocks of 16 with a 4-bit scale (low
//! nibble) and a 4-bit min.

use super::block::{IntBlock, SuperBlock, half_at};

pub(crate) struct Q2K;

impl SuperBlock for Q2K {
    type Bytes = [u8; 84];
    const HAS_MINS: bool = true;

    #[inline(always)]
    fn blocks(row: &[u8]) -> &[Self::Bytes] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn unpack(bytes: &Self::Bytes, out: &mut IntBlock) {
        out.d = half_at(bytes, 80);
        out.dmin = half_at(bytes, 82);
        out.scales = std::array::from_fn(|k| i16::from(bytes[k] & 15));
        out.mins = std::array::from_fn(|k| i16::from(bytes[k] >> 4));
        for (run, q) in out.q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (n, t) = (run / 4, run % 4);
            let qs = &bytes[16 + 32 * n..48 + 32 * n];
            for l in 0..32 {
                q[l] = (qs[l] >> (2 * t) & 3) as i8;
            }
        }
    }
}
