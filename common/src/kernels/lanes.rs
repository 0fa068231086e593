//! The float shapes that every instruction set keeps to, as plain loops.
//!
//! The bodies are inlined into functions that are compiled for more instructions than the target
//! has by default, where the compiler turns the 16 lanes into vectors. It neither fuses nor
//! reorders float operations, so the bits are the same everywhere.

/// How many partial sums a dot product keeps; element (or block) `i` goes to sum `i % 16`.
pub(super) const LANES: usize = 16;

/// Adds the lanes as a tree: `l += l + 8`, `l += l + 4`, `l += l + 2`, `l += l + 1`.
#[inline(always)]
pub(super) fn tree(mut lanes: [f32; LANES]) -> f32 {
    for width in [8, 4, 2, 1] {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
    }
    lanes[0]
}

/// `N` dot products with one common side: lane `i % 16` takes `a[i] * b[i]`, unfused, ascending.
#[inline(always)]
pub(super) fn dots<const N: usize>(a: &[f32], bs: [&[f32]; N]) -> [f32; N] {
    let whole = a.len() / LANES * LANES;
    let bs = bs.map(|b| &b[..a.len()]);
    let mut lanes = [[0.0; LANES]; N];
    for at in (0..whole).step_by(LANES) {
        let a: &[f32] = &a[at..at + LANES];
        for n in 0..N {
            let b = &bs[n][at..at + LANES];
            for l in 0..LANES {
                lanes[n][l] += a[l] * b[l];
            }
        }
    }
    for n in 0..N {
        for i in whole..a.len() {
            lanes[n][i - whole] += a[i] * bs[n][i];
        }
    }
    lanes.map(tree)
}

/// `out[i] = a · bs[i]`, four at a time so that the chains of additions overlap.
#[inline(always)]
pub(super) fn dots_many(a: &[f32], bs: &[&[f32]], out: &mut [f32]) {
    let (fours, rest) = bs.as_chunks::<4>();
    let (out_fours, out_rest) = out.as_chunks_mut::<4>();
    for (bs, out) in fours.iter().zip(out_fours) {
        *out = dots(a, *bs);
    }
    for (b, out) in rest.iter().zip(out_rest) {
        [*out] = dots(a, [b]);
    }
}

/// `y += a * x`, unfused, over the shorter of the two.
#[inline(always)]
pub(super) fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}
