//! Panels of sixteen Q4_K rows, a row a lane: AVX-512, with VNNI and without.
//!
//! A word of every row is one load, so unpacking is cheap: activations come in sets whose integer
//! sums stay in registers, and each set unpacks anew.

use std::arch::x86_64::*;

use super::sixteen::{Head, four, request, split, twice, two};
use super::{load_f32x16, part, store_f32x16};
use crate::kernels::sixteen::{Ahead, Places};
use crate::quant::{BlockQ8K, PanelBlock};

/// Activations of a set, at most.
const TOKENS: usize = 8;

/// Sub-blocks of 32 weights in four bytes a vector, of every row.
type Weights = [__m512i; 8];

/// Activations of each set, so that all sets are about equal.
fn set_of(tokens: usize) -> usize {
    tokens.div_ceil(tokens.div_ceil(TOKENS).max(1)).max(1)
}

/// A word of each row.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(words: &[[u8; 4]; 16]) -> __m512i {
    // SAFETY: the reference is valid for 64 bytes, which need no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// `q4_k_panel`, compiled for `$features`, whose module has two functions: `add` adds the scaled
/// integer sums of a sub-block and calls its last argument four times on the way; `add_mins` adds
/// two products of mins and activation sums in each lane.
macro_rules! panel_kernel {
    ($features:literal) => {
        /// A panel times activations; see [`crate::kernels::row::RowKernel::q4_k_panel`].
        #[target_feature(enable = $features)]
        pub(in super::super) fn q4_k_panel<const FRESH: bool>(
            panel: &[PanelBlock],
            xs: &[&BlockQ8K],
            ahead: impl Fn(usize) -> Ahead,
            out: &mut Places<'_>,
        ) {
            let tokens = xs.len().checked_div(panel.len()).unwrap_or(0);
            let set = set_of(tokens);
            for (b, (block, xs)) in panel.iter().zip(xs.chunks(tokens.max(1))).enumerate() {
                out.block = b;
                let mut ahead = ahead(b);
                for (i, xs) in xs.chunks(set).enumerate() {
                    let first = i * set;
                    match xs.len() {
                        1 => add_set::<FRESH, 1>(block, xs, ahead, first, out),
                        2 => add_set::<FRESH, 2>(block, xs, ahead, first, out),
                        3 => add_set::<FRESH, 3>(block, xs, ahead, first, out),
                        4 => add_set::<FRESH, 4>(block, xs, ahead, first, out),
                        5 => add_set::<FRESH, 5>(block, xs, ahead, first, out),
                        6 => add_set::<FRESH, 6>(block, xs, ahead, first, out),
                        7 => add_set::<FRESH, 7>(block, xs, ahead, first, out),
                        _ => add_set::<FRESH, 8>(block, xs, ahead, first, out),
                    }
                    // What is ahead was asked for by the first set.
                    ahead = Ahead::here(block);
                }
            }
        }

        /// Exactly `T` activations, those from `first` on.
        #[inline]
        #[target_feature(enable = $features)]
        fn add_set<const FRESH: bool, const T: usize>(
            w: &PanelBlock,
            xs: &[&BlockQ8K],
            ahead: Ahead,
            first: usize,
            out: &mut Places<'_>,
        ) {
            let Some(xs) = xs.first_chunk::<T>() else {
                return;
            };
            // Requests are spread as evenly as can be: in bursts they wait for each other, and
            // what is needed now waits for them. For a lone activation unpacking is a burst.
            let ask = |now: bool, line: usize| {
                if now {
                    request::<1>(ahead.far, line);
                }
                // Where products are slower than memory, none is lost.
                if now && T <= 4 {
                    request::<1>(ahead.near, line);
                }
            };
            let head = Head::new([load(&w[0]), load(&w[1]), load(&w[2]), load(&w[3])]);
            let mut sums = [_mm512_setzero_si512(); T];
            for p in 0..4 {
                let mut q = [[_mm512_setzero_si512(); 8]; 2];
                for i in 0..8 {
                    let [low, high] = split(load(&w[4 + 8 * p + i]));
                    (q[0][i], q[1][i]) = (low, high);
                    ask(T > 1, 4 + 8 * p + i);
                }
                let scales = [spread(head.scale(2 * p)), spread(head.scale(2 * p + 1))];
                for (sum, x) in sums.iter_mut().zip(xs) {
                    for (n, q) in q.iter().enumerate() {
                        let on_the_way = |i: usize| ask(T == 1, 4 + 8 * p + 4 * n + i);
                        *sum = add(*sum, q, part(&x.q, 2 * p + n), scales[n], on_the_way);
                    }
                }
            }
            (0..4).for_each(|line| ask(true, line));
            let mins = head.all_mins();
            for (t, (sum, x)) in sums.iter().zip(xs).enumerate() {
                let mut least = _mm512_setzero_si512();
                for (k, min) in mins.iter().enumerate() {
                    least = add_mins(least, *min, two(&x.bsums, k));
                }
                let terms = head.terms(*sum, least, x.d);
                let out = out.of(first + t);
                let old = if FRESH {
                    _mm512_setzero_ps()
                } else {
                    load_f32x16(out)
                };
                store_f32x16(_mm512_add_ps(old, terms), out);
            }
        }
    };
}

/// With VNNI: fours of products in 32 bits.
pub(super) mod vnni {
    use super::*;

    panel_kernel!("avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni");

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn spread(scale: __m512i) -> __m512i {
        scale
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn add(
        sum: __m512i,
        q: &Weights,
        x: &[i8; 32],
        scale: __m512i,
        on_the_way: impl Fn(usize),
    ) -> __m512i {
        let mut halves = [_mm512_setzero_si512(); 2];
        for i in 0..4 {
            on_the_way(i);
            halves[0] = _mm512_dpbusd_epi32(halves[0], q[i], four(x, i));
            halves[1] = _mm512_dpbusd_epi32(halves[1], q[i + 4], four(x, i + 4));
        }
        // 16 products are at most 16 * 15 * 128, so the lower half of a lane is its value, and
        // the zero above the scale hides the upper one.
        let sum = _mm512_dpwssd_epi32(sum, halves[0], scale);
        _mm512_dpwssd_epi32(sum, halves[1], scale)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn add_mins(sum: __m512i, mins: __m512i, sums: __m512i) -> __m512i {
        _mm512_dpwssd_epi32(sum, mins, sums)
    }
}

/// Without it: pairs of products in 16 bits.
pub(super) mod madd {
    use super::*;

    panel_kernel!("avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq");

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn spread(scale: __m512i) -> __m512i {
        twice(scale)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn add(
        sum: __m512i,
        q: &Weights,
        x: &[i8; 32],
        scale: __m512i,
        on_the_way: impl Fn(usize),
    ) -> __m512i {
        let mut halves = [_mm512_setzero_si512(); 2];
        for i in 0..4 {
            on_the_way(i);
            for (n, half) in halves.iter_mut().enumerate() {
                // Eight pairs are at most 8 * 2 * 15 * 128, which fits in 16 bits.
                let pairs = _mm512_maddubs_epi16(q[4 * n + i], four(x, 4 * n + i));
                *half = _mm512_add_epi16(*half, pairs);
            }
        }
        let pairs = _mm512_add_epi16(halves[0], halves[1]);
        _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, scale))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn add_mins(sum: __m512i, mins: __m512i, sums: __m512i) -> __m512i {
        _mm512_add_epi32(sum, _mm512_madd_epi16(mins, sums))
    }
}
