//! Blocks of Q8_0 rows and of the activations that they are multiplied with.

use crate::kernels::lanes::LANES;
use crate::quant::{BlockQ8, Q8_0, SmallBlock};

/// 16 blocks of an activation, one for each lane of the canonical sum.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(in crate::kernels) struct SixteenBlocks {
    /// Pairs of blocks, [`pair_start`] of each and the fourth one after it.
    pub(in crate::kernels) q: [[[i8; 32]; 2]; 8],
    /// What the products with weights raised by 128 are to start at: -128 times the sum of `q`.
    pub(in crate::kernels) offset: [i32; LANES],
    pub(in crate::kernels) d: [f32; LANES],
}

/// The first block of pair `i`; the second one comes four later. Summed by 128-bit lane and put
/// side by side, the pairs are in the order of the blocks.
pub(in crate::kernels) const fn pair_start(i: usize) -> usize {
    i % 4 + 8 * (i / 4)
}

impl SixteenBlocks {
    const ZERO: Self = Self {
        q: [[[0; 32]; 2]; 8],
        offset: [0; LANES],
        d: [0.0; LANES],
    };

    /// Blocks of an activation; those that lack in the last sixteen are zero.
    pub(in crate::kernels) fn lay_out(blocks: &[BlockQ8], out: &mut Vec<Self>) {
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

    /// Block `b`, as it was before.
    pub(in crate::kernels) fn block(&self, b: usize) -> BlockQ8 {
        let pair = b % 4 + 4 * (b / 8);
        BlockQ8 {
            d: self.d[b],
            q: self.q[pair][b / 4 % 2],
        }
    }
}

/// Activations that are multiplied with a block of rows together: so few that their sums stay in
/// the first-level cache.
pub(in crate::kernels) const Q8_0_TOKENS: usize = 32;

/// Rows that are multiplied together, a row a lane.
pub(in crate::kernels) const Q8_0_ROWS: usize = 32;

/// What each row adds to one activation.
pub(in crate::kernels) type Q8RowSums = [f32; Q8_0_ROWS];

/// One block of one activation.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(in crate::kernels) struct PackedBlock {
    pub(in crate::kernels) q: [i8; 32],
    pub(in crate::kernels) d: f32,
    /// What the products with weights raised by 128 are to start at: -128 times the sum of `q`.
    pub(in crate::kernels) offset: i32,
}

impl PackedBlock {
    pub(in crate::kernels) const ZERO: Self = Self {
        q: [0; 32],
        d: 0.0,
        offset: 0,
    };

    pub(in crate::kernels) fn new(block: &BlockQ8) -> Self {
        let sum: i32 = block.q.iter().map(|&q| i32::from(q)).sum();
        Self {
            q: block.q,
            d: block.d,
            offset: -128 * sum,
        }
    }
}

/// The same blocks of up to [`Q8_0_TOKENS`] activations: block by block, all activations of it.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct TokenGroup<'a> {
    pub(in crate::kernels) blocks: &'a [PackedBlock],
    pub(in crate::kernels) tokens: usize,
}

impl<'a> TokenGroup<'a> {
    /// The activations of block `b`.
    #[inline(always)]
    pub(in crate::kernels) fn of_block(self, b: usize) -> &'a [PackedBlock] {
        &self.blocks[b * self.tokens..][..self.tokens]
    }
}

/// The order in which lanes are added up: each one right before the tree joins it to the previous
/// ones. Lane `ORDER[i]` has `i`'s bits in reverse.
pub(in crate::kernels) const ORDER: [usize; LANES] =
    [0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15];

/// A block of each of [`Q8_0_ROWS`] rows.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(in crate::kernels) struct UnpackedBlock {
    /// Weights raised by 128: of 16 rows, the `i`th four of each row at `i`, row by row.
    pub(in crate::kernels) q: [[[u8; 64]; 8]; Q8_0_ROWS / LANES],
    pub(in crate::kernels) d: [[f32; LANES]; Q8_0_ROWS / LANES],
}

impl UnpackedBlock {
    pub(in crate::kernels) const ZERO: Self = Self {
        q: [[[0; 64]; 8]; Q8_0_ROWS / LANES],
        d: [[0.0; LANES]; Q8_0_ROWS / LANES],
    };

    /// Puts one row's block in its lane.
    pub(in crate::kernels) fn set(&mut self, row: usize, bytes: &[u8; 34]) {
        let (v, lane) = (row / LANES, row % LANES);
        for (i, four) in Q8_0::integers(bytes).as_chunks::<4>().0.iter().enumerate() {
            let raised = four.map(|q| (q as u8) ^ 0x80);
            self.q[v][i][4 * lane..4 * lane + 4].copy_from_slice(&raised);
        }
        self.d[v][lane] = Q8_0::scale(bytes);
    }

    /// A row's scale and weights.
    pub(in crate::kernels) fn get(&self, row: usize) -> (f32, [i8; 32]) {
        let (v, lane) = (row / LANES, row % LANES);
        let byte = |i: usize| self.q[v][i / 4][4 * lane + i % 4] ^ 0x80;
        (self.d[v][lane], std::array::from_fn(|i| byte(i) as i8))
    }
}

/// Sums of all activations that wait for their other half: one for each bit of a lane's number,
/// and the lane that is being added up.
pub(in crate::kernels) struct LaneSums {
    // One place more than needed: levels a multiple of a page apart would get in each other's way.
    levels: Box<[[Q8RowSums; Q8_0_TOKENS + 1]; 5]>,
}

impl Default for LaneSums {
    fn default() -> Self {
        Self {
            levels: Box::new([[[0.0; Q8_0_ROWS]; Q8_0_TOKENS + 1]; 5]),
        }
    }
}

/// Where one lane's sums go.
pub(in crate::kernels) struct Lane<'a> {
    pub(in crate::kernels) own: &'a mut [Q8RowSums],
    /// The sums that this lane's are added to once they are complete.
    pub(in crate::kernels) left: Option<&'a mut [Q8RowSums]>,
}

impl LaneSums {
    /// The `i`th lane in [`ORDER`]. Its own sums hold anything.
    #[inline(always)]
    pub(in crate::kernels) fn lane(&mut self, i: usize, tokens: usize) -> Lane<'_> {
        let level = i.count_ones() as usize;
        let (before, from) = self.levels.split_at_mut(level);
        let left = before.last_mut().filter(|_| i % 2 == 1);
        Lane {
            own: &mut from[0][..tokens],
            left: left.map(|left| &mut left[..tokens]),
        }
    }

    /// Joins what the `i`th lane was added to with those sums that waited for it.
    #[inline(always)]
    pub(in crate::kernels) fn join(&mut self, i: usize, tokens: usize) {
        let mut level = i.count_ones() as usize;
        for step in 0..i.trailing_ones() {
            if step > 0 {
                let (left, right) = self.levels.split_at_mut(level);
                add_to(&mut left[level - 1][..tokens], &right[0][..tokens]);
            }
            level -= 1;
        }
    }

    /// The sums over all lanes.
    #[inline(always)]
    pub(in crate::kernels) fn total(&self, tokens: usize) -> &[Q8RowSums] {
        &self.levels[0][..tokens]
    }
}

impl Lane<'_> {
    /// Completes a lane that has no block.
    #[inline(always)]
    pub(in crate::kernels) fn empty(self) {
        self.own.fill([0.0; Q8_0_ROWS]);
        self.complete();
    }

    /// Adds the lane's sums to those on their left.
    #[inline(always)]
    pub(in crate::kernels) fn complete(self) {
        if let Some(left) = self.left {
            add_to(left, self.own);
        }
    }
}

#[inline(always)]
fn add_to(left: &mut [Q8RowSums], right: &[Q8RowSums]) {
    for (left, right) in left.iter_mut().zip(right) {
        for (l, r) in left.iter_mut().zip(right) {
            *l += r;
        }
    }
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
        SixteenBlocks::lay_out(&blocks, &mut laid_out);
        assert_eq!(laid_out.len(), 2);
        for (b, block) in blocks.iter().enumerate() {
            assert_eq!(laid_out[b / 16].block(b % 16), *block);
        }
        assert_eq!(laid_out[1].block(7), BlockQ8::ZERO);
    }
}
