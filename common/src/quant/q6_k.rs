//! Q6_K: `u8 ql[128]; u8 qh[64]; i8 sc[16]; f16 d`. Two halves of 128; in a half, four runs of 32
//! take their low nibbles from 64 bytes and their upper two bits from 32 bytes.

use super::block::{IntBlock, SuperBlock, half_at};

pub(crate) struct Q6K;

impl SuperBlock for Q6K {
    type Bytes = [u8; 210];
    const HAS_MINS: bool = false;

    #[inline(always)]
    fn blocks(row: &[u8]) -> &[Self::Bytes] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn unpack(bytes: &Self::Bytes, out: &mut IntBlock) {
        out.d = half_at(bytes, 208);
        out.scales = std::array::from_fn(|k| i16::from(bytes[192 + k] as i8));
        for (n, q) in out.q.as_chunks_mut::<128>().0.iter_mut().enumerate() {
            let ql = &bytes[64 * n..64 * n + 64];
            let qh = &bytes[128 + 32 * n..128 + 32 * n + 32];
            for l in 0..32 {
                q[l] = join(ql[l] & 15, qh[l]);
                q[l + 32] = join(ql[l + 32] & 15, qh[l] >> 2);
                q[l + 64] = join(ql[l] >> 4, qh[l] >> 4);
                q[l + 96] = join(ql[l + 32] >> 4, qh[l] >> 6);
            }
        }
    }
}

#[inline(always)]
fn join(low: u8, high: u8) -> i8 {
    (low | (high & 3) << 4) as i8 - 32
}
