//! Q3_K: `u8 hmask[32]; u8 qs[64]; u8 sc[12]; f16 d`. Two bits in `qs`; where the mask bit is
//! clear, 4 is taken away. Scales have six bits and a bias of 32.

use super::block::{IntBlock, SuperBlock, half_at};

pub(crate) struct Q3K;

impl SuperBlock for Q3K {
    type Bytes = [u8; 110];
    const HAS_MINS: bool = false;

    #[inline(always)]
    fn blocks(row: &[u8]) -> &[Self::Bytes] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn unpack(bytes: &Self::Bytes, out: &mut IntBlock) {
        out.d = half_at(bytes, 108);
        let sc = &bytes[96..108];
        out.scales = std::array::from_fn(|k| {
            let low = if k < 8 { sc[k] & 15 } else { sc[k - 8] >> 4 };
            let high = sc[8 + k % 4] >> (2 * (k / 4)) & 3;
            i16::from(low | high << 4) - 32
        });
        for (run, q) in out.q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (n, t) = (run / 4, run % 4);
            let qs = &bytes[32 + 32 * n..64 + 32 * n];
            for l in 0..32 {
                let clear = !bytes[l] >> run & 1;
                q[l] = (qs[l] >> (2 * t) & 3) as i8 - (clear << 2) as i8;
            }
        }
    }
}
