//! Several rows of Q8_0 at a time, each in a lane of its own, times many activations.
//!
//! A panel of rows is unpacked once. A block of its rows meets the same block of a group of
//! activations, which lie side by side for that. What each lane of the canonical sum adds up is added up lane after lane,
//! in the order in which the tree joins the lanes, so that few sums are alive at a time.

use std::ops::Range;

use super::lanes::LANES;
use super::matrix::Matrix;
use super::row::RowKernel;
use crate::quant::{BlockQ8, Q8_0, SmallBlock};

/// Activations that meet a block of rows together: so few that their sums stay in the nearest
/// cache.
pub(super) const TOKENS: usize = 32;

/// Most rows that a kernel takes at once.
pub(super) const MAX_ROWS: usize = 32;

/// What each row adds to one activation.
pub(super) type Sums = [f32; MAX_ROWS];

/// One block of one activation.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct PackedBlock {
    pub(super) q: [i8; 32],
    pub(super) d: f32,
    /// What the products with weights raised by 128 are to start at: -128 times the sum of `q`.
    pub(super) offset: i32,
}

impl PackedBlock {
    pub(super) const ZERO: Self = Self {
        q: [0; 32],
        d: 0.0,
        offset: 0,
    };

    pub(super) fn new(block: &BlockQ8) -> Self {
        let sum: i32 = block.q.iter().map(|&q| i32::from(q)).sum();
        Self {
            q: block.q,
            d: block.d,
            offset: -128 * sum,
        }
    }
}

/// The same blocks of up to [`TOKENS`] activations: block by block, all activations of it.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    pub(super) blocks: &'a [PackedBlock],
    pub(super) tokens: usize,
}

impl<'a> Group<'a> {
    /// The activations of block `b`.
    #[inline(always)]
    pub(super) fn of_block(self, b: usize) -> &'a [PackedBlock] {
        &self.blocks[b * self.tokens..][..self.tokens]
    }
}

/// The order in which lanes are added up: each one right before the tree joins it to the previous
/// ones. Lane `ORDER[i]` has `i`'s bits in reverse.
pub(super) const ORDER: [usize; LANES] = [0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15];

/// A block of every row of a panel.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct UnpackedBlock {
    /// Weights raised by 128: of 16 rows, the `i`th four of each row at `i`, row by row.
    pub(super) q: [[[u8; 64]; 8]; MAX_ROWS / LANES],
    pub(super) d: [[f32; LANES]; MAX_ROWS / LANES],
}

impl UnpackedBlock {
    const ZERO: Self = Self {
        q: [[[0; 64]; 8]; MAX_ROWS / LANES],
        d: [[0.0; LANES]; MAX_ROWS / LANES],
    };

    /// Puts one row's block in its lane.
    fn set(&mut self, row: usize, bytes: &[u8; 34]) {
        let (v, lane) = (row / LANES, row % LANES);
        for (i, four) in Q8_0::integers(bytes).as_chunks::<4>().0.iter().enumerate() {
            let raised = four.map(|q| (q as u8) ^ 0x80);
            self.q[v][i][4 * lane..4 * lane + 4].copy_from_slice(&raised);
        }
        self.d[v][lane] = Q8_0::scale(bytes);
    }

    /// A row's scale and weights.
    fn get(&self, row: usize) -> (f32, [i8; 32]) {
        let (v, lane) = (row / LANES, row % LANES);
        let byte = |i: usize| self.q[v][i / 4][4 * lane + i % 4] ^ 0x80;
        (self.d[v][lane], std::array::from_fn(|i| byte(i) as i8))
    }
}

/// Buffers of one thread.
#[derive(Default)]
pub(super) struct PanelScratch {
    pub(super) weights: Vec<UnpackedBlock>,
    pub(super) waiting: Waiting,
}

/// Sums of all activations that wait for their other half: one for each bit of a lane's number,
/// and the lane that is being added up.
pub(super) struct Waiting {
    // One place more than needed: levels a multiple of a page apart would get in each other's way.
    levels: Box<[[Sums; TOKENS + 1]; 5]>,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            levels: Box::new([[[0.0; MAX_ROWS]; TOKENS + 1]; 5]),
        }
    }
}

/// Where one lane's sums go.
pub(super) struct Lane<'a> {
    pub(super) own: &'a mut [Sums],
    /// The sums that this lane's are added to once they are complete.
    pub(super) left: Option<&'a mut [Sums]>,
}

impl Waiting {
    /// The `i`th lane in [`ORDER`]. Its own sums hold anything.
    #[inline(always)]
    pub(super) fn lane(&mut self, i: usize, tokens: usize) -> Lane<'_> {
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
    pub(super) fn join(&mut self, i: usize, tokens: usize) {
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
    pub(super) fn total(&self, tokens: usize) -> &[Sums] {
        &self.levels[0][..tokens]
    }
}

impl Lane<'_> {
    /// Completes a lane that has no block.
    #[inline(always)]
    pub(super) fn empty(self) {
        self.own.fill([0.0; MAX_ROWS]);
        self.complete();
    }

    /// Adds the lane's sums to those on their left.
    #[inline(always)]
    pub(super) fn complete(self) {
        if let Some(left) = self.left {
            add_to(left, self.own);
        }
    }
}

#[inline(always)]
fn add_to(left: &mut [Sums], right: &[Sums]) {
    for (left, right) in left.iter_mut().zip(right) {
        for (l, r) in left.iter_mut().zip(right) {
            *l += r;
        }
    }
}

/// The rows `rows` of `w` times groups of activations: calls `each` with the number of a group,
/// the first row of a panel, and the sums of its rows for every activation of the group.
///
/// # Panics
/// A group has not the blocks of a row, or more than [`TOKENS`] activations.
pub(super) fn run<'x, K: RowKernel>(
    k: K,
    w: &Matrix<'_>,
    rows: Range<usize>,
    groups: impl Iterator<Item = Group<'x>> + Clone,
    scratch: &mut PanelScratch,
    mut each: impl FnMut(usize, usize, usize, &[Sums]),
) {
    let blocks = w.cols() / 32;
    scratch.weights.resize(blocks, UnpackedBlock::ZERO);
    for first in rows.clone().step_by(K::PANEL) {
        let count = K::PANEL.min(rows.end - first);
        // Lanes without a row of their own repeat the last one.
        let panel: [&[u8]; MAX_ROWS] = std::array::from_fn(|r| w.row(first + r.min(count - 1)));
        // The next panel follows this one, unless the rows are a strip of longer ones.
        let ahead = panel[count - 1].as_ptr_range().end;
        k.q8_unpack(&panel, ahead, &mut scratch.weights);
        for (g, x) in groups.clone().enumerate() {
            assert!(x.tokens <= TOKENS && x.blocks.len() == blocks * x.tokens);
            k.q8_panel(&scratch.weights, x, &mut scratch.waiting);
            each(g, first, count, scratch.waiting.total(x.tokens));
        }
    }
}

/// What [`RowKernel::q8_unpack`] is to give, in plain Rust.
pub(super) fn unpack(rows: &[&[u8]; MAX_ROWS], weights: &mut [UnpackedBlock]) {
    for (r, row) in rows.iter().enumerate() {
        for (block, bytes) in weights.iter_mut().zip(Q8_0::blocks(row)) {
            block.set(r, bytes);
        }
    }
}

/// What [`RowKernel::q8_panel`] is to give, in plain Rust.
pub(super) fn multiply(weights: &[UnpackedBlock], x: Group<'_>, waiting: &mut Waiting) {
    for (i, &lane) in ORDER.iter().enumerate() {
        let Lane { own, left } = waiting.lane(i, x.tokens);
        own.fill([0.0; MAX_ROWS]);
        for (b, block) in weights.iter().enumerate().skip(lane).step_by(LANES) {
            for r in 0..MAX_ROWS {
                let (scale, q) = block.get(r);
                for (x, sums) in x.of_block(b).iter().zip(own.iter_mut()) {
                    let products = q
                        .iter()
                        .zip(&x.q)
                        .map(|(&w, &x)| i32::from(w) * i32::from(x));
                    sums[r] += (scale * x.d) * products.sum::<i32>() as f32;
                }
            }
        }
        Lane { own, left }.complete();
        waiting.join(i, x.tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::q8_lone::{self, Sixteen};

    #[test]
    fn lanes_are_joined_as_the_tree_does() {
        let block = |seed: usize| BlockQ8 {
            d: 0.5 + (seed % 7) as f32,
            q: std::array::from_fn(|i| (seed * 31 + i * 17) as i8),
        };
        for blocks in [1, 5, 16, 17, 40] {
            let bytes: Vec<u8> = (0..MAX_ROWS * blocks * 34)
                .map(|i| {
                    if i % 34 == 1 {
                        0x30
                    } else {
                        (i * 73 % 251) as u8
                    }
                })
                .collect();
            let rows: [&[u8]; MAX_ROWS] =
                std::array::from_fn(|r| &bytes[r * blocks * 34..][..blocks * 34]);
            let tokens: Vec<Vec<BlockQ8>> = (0..3)
                .map(|t| (0..blocks).map(|b| block(100 * t + b)).collect())
                .collect();
            let packed: Vec<PackedBlock> = (0..blocks)
                .flat_map(|b| tokens.iter().map(move |x| PackedBlock::new(&x[b])))
                .collect();
            let group = Group {
                blocks: &packed,
                tokens: 3,
            };
            let (mut waiting, mut weights) =
                (Waiting::default(), vec![UnpackedBlock::ZERO; blocks]);
            unpack(&rows, &mut weights);
            multiply(&weights, group, &mut waiting);
            for (x, sums) in tokens.iter().zip(waiting.total(3)) {
                let mut laid_out = Vec::new();
                Sixteen::lay_out(x, &mut laid_out);
                for (row, sum) in rows.iter().zip(sums) {
                    assert_eq!(sum.to_bits(), q8_lone::dot(row, &laid_out).to_bits());
                }
            }
        }
    }
}
