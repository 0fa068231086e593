//! Rows of Q8_0 times one activation, which is laid out once as the rows meet it.

use super::lanes::{self, LANES};
use crate::quant::{BlockQ8, Q8_0, SmallBlock};

/// Bytes between a stream of rows and what is asked for.
pub(super) const STREAM_AHEAD: usize = 6 << 10;

/// 16 blocks of an activation, one for each lane of the canonical sum.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Sixteen {
    /// Pairs of blocks, [`pair_start`] of each and the fourth one after it.
    pub(super) q: [[[i8; 32]; 2]; 8],
    /// What the products with weights raised by 128 are to start at: -128 times the sum of `q`.
    pub(super) offset: [i32; LANES],
    pub(super) d: [f32; LANES],
}

/// The first block of pair `i`; the second one comes four later. Summed by 128-bit lane and put
/// side by side, the pairs are in the order of the blocks.
pub(super) const fn pair_start(i: usize) -> usize {
    i % 4 + 8 * (i / 4)
}

impl Sixteen {
    const ZERO: Self = Self {
        q: [[[0; 32]; 2]; 8],
        offset: [0; LANES],
        d: [0.0; LANES],
    };

    /// Blocks of an activation; those that lack in the last sixteen are zero.
    pub(super) fn lay_out(blocks: &[BlockQ8], out: &mut Vec<Self>) {
        out.clear();
        for blocks in blocks.chunks(LANES) {
            let mut to = Self::ZERO;
            for (pair, q) in to.q.iter_mut().enumerate() {
                for (half, q) in q.iter_mut().enumerate() {
                    if let Some(block) = blocks.get(pair_start(pair) + 4 * half) {
                        *q = block.q;
                    }
                }
            }
            for (b, block) in blocks.iter().enumerate() {
                to.offset[b] = -128 * block.q.iter().map(|&q| i32::from(q)).sum::<i32>();
                to.d[b] = block.d;
            }
            out.push(to);
        }
    }

    fn block(&self, b: usize) -> BlockQ8 {
        let pair = b % 4 + 4 * (b / 8);
        BlockQ8 {
            d: self.d[b],
            q: self.q[pair][b / 4 % 2],
        }
    }
}

/// What [`super::row::RowKernel::q8_0_lone`] is to give, in plain Rust.
pub(super) fn dot(row: &[u8], x: &[Sixteen]) -> f32 {
    let mut sums = [0.0; LANES];
    for (b, bytes) in Q8_0::blocks(row).iter().enumerate() {
        let (scale, q) = (Q8_0::scale(bytes), Q8_0::integers(bytes));
        let x = x[b / LANES].block(b % LANES);
        lanes::add_small_block(&mut sums[b % LANES], scale, &q, &x);
    }
    lanes::tree(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_again() {
        let blocks: Vec<BlockQ8> = (0..21)
            .map(|b| BlockQ8 {
                d: b as f32,
                q: std::array::from_fn(|i| (b * 5 + i) as i8),
            })
            .collect();
        let mut laid_out = Vec::new();
        Sixteen::lay_out(&blocks, &mut laid_out);
        assert_eq!(laid_out.len(), 2);
        for (b, block) in blocks.iter().enumerate() {
            assert_eq!(laid_out[b / 16].block(b % 16), *block);
        }
        assert_eq!(laid_out[1].block(7), BlockQ8::ZERO);
    }
}
