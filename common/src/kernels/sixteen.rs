//! Q4_K, several rows at a time: each row has its own lane, so nothing is added across lanes.

use super::scalar;
use crate::quant::{BlockQ8K, IntBlock, Q4K, SuperBlock};

/// Rows at a time.
pub(super) const ROWS: usize = 16;

/// A block of each of the rows.
pub(super) type Blocks<'a> = [&'a [u8; 144]; ROWS];

/// What each row adds to the sums of one activation.
pub(super) type Sums = [f32; ROWS];

/// Where the results of the rows go, block by block.
pub(super) struct Places<'a> {
    /// From the first result of the first activation on.
    pub(super) out: &'a mut [f32],
    /// From an activation to the next.
    pub(super) of_token: usize,
    /// From a block to the next; 0 where blocks are added up.
    pub(super) of_block: usize,
    /// The block that is being computed.
    pub(super) block: usize,
}

impl Places<'_> {
    /// The results of activation `t`.
    ///
    /// # Panics
    /// There is no place for them.
    #[inline(always)]
    pub(super) fn of(&mut self, t: usize) -> &mut Sums {
        let at = t * self.of_token + self.block * self.of_block;
        &mut self.out[at..at + ROWS].as_chunks_mut().0[0]
    }
}

/// `out[t][r] += w[r] · xs[t]`, as the scalar definition has it.
pub(super) fn add_block<const N: usize>(
    w: [&[u8; 144]; N],
    xs: &[&BlockQ8K],
    out: &mut [[f32; N]],
) {
    let mut block = IntBlock::ZERO;
    for (r, bytes) in w.iter().enumerate() {
        Q4K::unpack(bytes, &mut block);
        for (x, out) in xs.iter().zip(out.iter_mut()) {
            out[r] += term(&block, x);
        }
    }
}

/// `terms[b] = row[b] · x[b]`, as the scalar definition has it.
pub(super) fn terms(row: &[u8], x: &[&BlockQ8K], terms: &mut [f32]) {
    let mut block = IntBlock::ZERO;
    for ((bytes, x), result) in Q4K::blocks(row).iter().zip(x).zip(terms) {
        Q4K::unpack(bytes, &mut block);
        *result = term(&block, x);
    }
}

fn term(w: &IntBlock, x: &BlockQ8K) -> f32 {
    let sum = scalar::weighted_sum(w, x);
    scalar::term::<Q4K>(w, x.d, sum, scalar::sum_of_mins(w, x))
}
