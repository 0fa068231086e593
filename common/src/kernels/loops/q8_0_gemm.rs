//! GEMM of Q8_0: 32 rows at a time, each in a lane of its own, times many activations.
//!
//! The rows are unpacked once. A block of them is multiplied with the same block of a group of
//! activations, which lie side by side for that. The lanes of the canonical sum are added up one
//! after the other, in the order in which its tree joins them, so that few sums are alive at a
//! time.

use std::ops::Range;

use super::super::instruction_set::InstructionSet;
use super::super::operands::Matrix;
use super::super::operands::q8_0_blocks::{
    LaneSums, Q8_0_ROWS, Q8_0_TOKENS, Q8RowSums, TokenGroup, UnpackedBlock,
};

/// Buffers of one thread, kept between calls.
#[derive(Default)]
pub(in crate::kernels) struct Q8Scratch {
    weights: Vec<UnpackedBlock>,
    sums: LaneSums,
}

/// The rows `rows` of `w` times groups of activations: calls `each` with the number of a group,
/// the first of up to 32 rows, their number, and their sums for every activation of the group.
///
/// # Panics
/// A group does not have the blocks of a row, or has more than [`Q8_0_TOKENS`] activations.
pub(in crate::kernels) fn run<'x, K: InstructionSet>(
    k: K,
    w: &Matrix<'_>,
    rows: Range<usize>,
    groups: impl Iterator<Item = TokenGroup<'x>> + Clone,
    scratch: &mut Q8Scratch,
    mut each: impl FnMut(usize, usize, usize, &[Q8RowSums]),
) {
    let blocks = w.cols() / 32;
    scratch.weights.resize(blocks, UnpackedBlock::ZERO);
    for first in rows.clone().step_by(Q8_0_ROWS) {
        let count = Q8_0_ROWS.min(rows.end - first);
        // Lanes without a row of their own repeat the last one.
        let side_by_side: [&[u8]; Q8_0_ROWS] =
            std::array::from_fn(|r| w.row(first + r.min(count - 1)));
        // The next rows follow these, unless they are a strip of longer ones.
        let ahead = side_by_side[count - 1].as_ptr_range().end;
        k.q8_0_unpack(&side_by_side, ahead, &mut scratch.weights);
        for (g, x) in groups.clone().enumerate() {
            assert!(x.tokens <= Q8_0_TOKENS && x.blocks.len() == blocks * x.tokens);
            k.q8_0_gemm_32rows(&scratch.weights, x, &mut scratch.sums);
            each(g, first, count, scratch.sums.total(x.tokens));
        }
    }
}
