//! Q4_K, several rows at a time: each row has its own lane, so nothing is added across lanes.

use super::scalar;
use crate::quant::{BlockQ8K, IntBlock, Q4K, SuperBlock};

/// Rows at a time.
pub(super) const ROWS: usize = 16;

/// A block of each of the rows.
pub(super) type Blocks<'a> = [&'a [u8; 144]; ROWS];

/// What each row adds to the sums of one activation.
pub(super) type Sums = [f32; ROWS];

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
