//! GEMV of Q8_0 and F16: rows stream past one activation.

use std::ops::Range;

use super::super::instruction_set::InstructionSet;
use super::super::operands::Matrix;
use super::super::operands::q8_0_blocks::SixteenBlocks;
use super::super::select::STREAM_AHEAD;

/// The rows `rows` of Q8_0 weights times `x`: calls `each` with a row and its product.
pub(in crate::kernels) fn q8_0<K: InstructionSet>(
    k: K,
    w: &Matrix<'_>,
    rows: Range<usize>,
    x: &[SixteenBlocks],
    each: impl FnMut(usize, f32),
) {
    stream(w, rows, |row, ahead| k.q8_0_gemv(row, x, ahead), each);
}

/// The same for F16 weights.
pub(in crate::kernels) fn f16<K: InstructionSet>(
    k: K,
    w: &Matrix<'_>,
    rows: Range<usize>,
    x: &[f32],
    each: impl FnMut(usize, f32),
) {
    stream(w, rows, |row, ahead| k.f16_gemv(row, x, ahead), each);
}

fn stream(
    w: &Matrix<'_>,
    rows: Range<usize>,
    dot: impl Fn(&[u8], *const u8) -> f32,
    mut each: impl FnMut(usize, f32),
) {
    for r in rows {
        let row = w.row(r);
        each(r, dot(row, row.as_ptr().wrapping_add(STREAM_AHEAD)));
    }
}
