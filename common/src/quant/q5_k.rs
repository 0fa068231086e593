//! Q5_K: `f16 d; f16 dmin; u8 sc[12]; u8 qh[32]; u8 qs[128]`. Q4_K with a fifth bit: that of
//! element `l` in sub-block `j` is bit `j` of `qh[l]`.

use super::block::{IntBlock, SuperBlock, half_at, six_bit_pairs, twice, word_at};

pub(crate) struct Q5K;

impl SuperBlock for Q5K {
    type Bytes = [u8; 176];
    const HAS_MINS: bool = true;

    #[inline(always)]
    fn blocks(row: &[u8]) -> &[Self::Bytes] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn unpack(bytes: &Self::Bytes, out: &mut IntBlock) {
        let packed = [word_at(bytes, 4), word_at(bytes, 8), word_at(bytes, 12)];
        let (scales, mins) = six_bit_pairs(packed);
        out.d = half_at(bytes, 0);
        out.dmin = half_at(bytes, 2);
        out.scales = twice(scales);
        out.mins = twice(mins);
        let qh = &bytes[16..48];
        let pairs = bytes[48..]
            .as_chunks::<32>()
            .0
            .iter()
            .zip(out.q.as_chunks_mut::<64>().0);
        for (p, (qs, q)) in pairs.enumerate() {
            for l in 0..32 {
                q[l] = ((qs[l] & 15) | (qh[l] >> (2 * p) & 1) << 4) as i8;
                q[l + 32] = ((qs[l] >> 4) | (qh[l] >> (2 * p + 1) & 1) << 4) as i8;
            }
        }
    }
}
