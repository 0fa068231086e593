//! The float shapes that every instruction set keeps to, as plain loops.
//!
//! The bodies are inlined into functions that are compiled for more instructions than the target
//! has by default, where the compiler turns the 16 lanes into vectors. It neither fuses nor
//! reorders float operations, so the bits are the same everywhere.

use crate::quant::BlockQ8;

/// How many partial sums a dot product keeps; element (or block) `i` goes to sum `i % 16`.
pub(super) const LANES: usize = 16;

/// Adds the lanes as a tree: `l += l + 8`, `l += l + 4`, `l += l + 2`, `l += l + 1`.
#[inline(always)]
pub(super) fn tree(mut lanes: [f32; LANES]) -> f32 {
    halve::<8>(&mut lanes);
    halve::<4>(&mut lanes);
    halve::<2>(&mut lanes);
    halve::<1>(&mut lanes);
    lanes[0]
}

#[inline(always)]
fn halve<const WIDTH: usize>(lanes: &mut [f32; LANES]) {
    for l in 0..WIDTH {
        lanes[l] += lanes[l + WIDTH];
    }
}

/// `N` dot products with one common side: lane `i % 16` takes `a[i] * b[i]`, unfused, ascending.
#[inline(always)]
pub(super) fn dots<const N: usize>(a: &[f32], bs: [&[f32]; N]) -> [f32; N] {
    let (whole, rest) = a.as_chunks::<LANES>();
    let parts = bs.map(|b| &b.as_chunks::<LANES>().0[..whole.len()]);
    let mut lanes = [[0.0; LANES]; N];
    for (i, a) in whole.iter().enumerate() {
        for n in 0..N {
            let b = &parts[n][i];
            for l in 0..LANES {
                lanes[n][l] += a[l] * b[l];
            }
        }
    }
    if !rest.is_empty() {
        for (lanes, b) in lanes.iter_mut().zip(bs) {
            *lanes = add_rest(*lanes, rest, &b[LANES * whole.len()..]);
        }
    }
    lanes.map(tree)
}

/// Out of line, because it is rare and would crowd the loop above.
#[inline(never)]
fn add_rest(mut lanes: [f32; LANES], a: &[f32], b: &[f32]) -> [f32; LANES] {
    for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
        *lane += a * b;
    }
    lanes
}

/// `out[i] = a · bs[i]`, several at a time so that the chains of additions overlap.
#[inline(always)]
pub(super) fn dots_many(a: &[f32], bs: &[&[f32]], out: &mut [f32]) {
    let (fours, rest) = bs.as_chunks::<4>();
    let (out_fours, out_rest) = out.as_chunks_mut::<4>();
    for (bs, out) in fours.iter().zip(out_fours) {
        *out = dots(a, *bs);
    }
    match (rest, out_rest) {
        ([x, y, z], [ox, oy, oz]) => [*ox, *oy, *oz] = dots(a, [*x, *y, *z]),
        ([x, y], [ox, oy]) => [*ox, *oy] = dots(a, [*x, *y]),
        ([x], [ox]) => [*ox] = dots(a, [*x]),
        _ => {}
    }
}

/// `y += factors[i] * xs[i]` for each `i` in turn, unfused; four at a time, so that `y` is read and
/// written less often.
#[inline(always)]
pub(super) fn add_scaled(factors: &[f32], xs: &[&[f32]], y: &mut [f32]) {
    let len = y.len();
    let (fours, rest) = xs.as_chunks::<4>();
    let (factor_fours, factor_rest) = factors.as_chunks::<4>();
    for ([a, b, c, d], f) in fours.iter().zip(factor_fours) {
        let (a, b, c, d) = (&a[..len], &b[..len], &c[..len], &d[..len]);
        for i in 0..len {
            y[i] = (((y[i] + f[0] * a[i]) + f[1] * b[i]) + f[2] * c[i]) + f[3] * d[i];
        }
    }
    for (x, f) in rest.iter().zip(factor_rest) {
        for (y, x) in y.iter_mut().zip(*x) {
            *y += f * x;
        }
    }
}

/// Adds one block of 32 to its lane.
#[inline(always)]
pub(super) fn add_small_block(lane: &mut f32, scale: f32, w: &[i8; 32], x: &BlockQ8) {
    let sum: i32 = w
        .iter()
        .zip(&x.q)
        .map(|(&w, &x)| i32::from(w) * i32::from(x))
        .sum();
    *lane += (scale * x.d) * sum as f32;
}
