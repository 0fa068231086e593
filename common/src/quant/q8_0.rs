//! Q8_0: `f16 d; i8 q[32]`.

use super::block::{SmallBlock, half_at};

pub(crate) struct Q8_0;

impl SmallBlock for Q8_0 {
    type Bytes = [u8; 34];

    #[inline(always)]
    fn blocks(row: &[u8]) -> &[Self::Bytes] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn scale(bytes: &Self::Bytes) -> f32 {
        half_at(bytes, 0)
    }

    #[inline(always)]
    fn integers(bytes: &Self::Bytes) -> [i8; 32] {
        std::array::from_fn(|i| bytes[2 + i] as i8)
    }
}
