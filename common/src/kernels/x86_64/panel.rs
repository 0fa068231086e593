//! Panels of sixteen Q4_K rows, a row a lane: AVX-512, with VNNI and without.
//!
//! A word of every row is one load, so unpacking is cheap: activations come in sets whose integer
//! sums stay in registers, and each set unpacks anew.

use std::arch::asm;
use std::arch::x86_64::*;

use super::sixteen::{Head, four, request, split, twice, two};
use super::{load_f32x16, part, store_f32x16};
use crate::kernels::sixteen::Places;
use crate::quant::{BlockQ8K, PanelBlock};

/// Activations of a set, at most.
const TOKENS: usize = 8;

/// Sub-blocks of 32 weights in four bytes a vector, of every row.
type Weights = [__m512i; 8];

/// Activations of each set of at most `limit`, so that all sets are about equal.
pub(super) fn set_of(tokens: usize, limit: usize) -> usize {
    tokens.div_ceil(tokens.div_ceil(limit).max(1)).max(1)
}

/// A word of each row.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(words: &[[u8; 4]; 16]) -> __m512i {
    // SAFETY: the reference is valid for 64 bytes, which need no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// Keeps requests where they are: left alone, a compiler gathers those of a block, and a burst
/// delays what is needed first.
#[inline]
#[target_feature(enable = "avx512f")]
fn stay(mut products: __m512i) -> __m512i {
    // SAFETY: there is no instruction.
    unsafe { asm!("/* {} */", inout(zmm_reg) products, options(nostack, preserves_flags)) }
    products
}

/// `q4_k_panel`, compiled for `$features`, whose module tells how bytes are multiplied: `multiply`
/// adds products of four weights a lane, `RUN` times at most before `add_scaled` adds them to the
/// sums, whose scale it wants `twice` or not (`spread`); `add_mins` adds two products of mins and
/// activation sums in each lane.
macro_rules! panel_kernel {
    ($features:literal) => {
        /// A panel times activations; see [`crate::kernels::row::RowKernel::q4_k_panel`].
        #[target_feature(enable = $features)]
        pub(in super::super) fn q4_k_panel<const FRESH: bool>(
            panel: &[PanelBlock],
            xs: &[&BlockQ8K],
            ahead: impl Fn(usize) -> *const u8,
            out: &mut Places<'_>,
        ) {
            let tokens = xs.len().checked_div(panel.len()).unwrap_or(0);
            let set = set_of(tokens, TOKENS);
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
                    ahead = block.as_ptr().cast();
                }
            }
        }

        /// Exactly `T` activations, those from `first` on.
        #[inline]
        #[target_feature(enable = $features)]
        fn add_set<const FRESH: bool, const T: usize>(
            w: &PanelBlock,
            xs: &[&BlockQ8K],
            ahead: *const u8,
            first: usize,
            out: &mut Places<'_>,
        ) {
            let Some(xs) = xs.first_chunk::<T>() else {
                return;
            };
            let ask = |line: usize| {
                request::<1>(ahead, line);
                // Where products are faster than memory, a second request of a line gains a tenth:
                // the first may meet full queues.
                if T <= 4 {
                    request::<1>(ahead, line);
                }
            };
            let head = Head::new([load(&w[0]), load(&w[1]), load(&w[2]), load(&w[3])]);
            let mut sums = [_mm512_setzero_si512(); T];
            for p in 0..4 {
                let scales = [spread(head.scale(2 * p)), spread(head.scale(2 * p + 1))];
                let lines = part::<_, 8>(&w[4..], p);
                if let [x] = &xs[..] {
                    let x = [part(&x.q, 2 * p), part(&x.q, 2 * p + 1)];
                    sums[0] = add_lone(sums[0], lines, x, scales, |i| ask(4 + 8 * p + i));
                    continue;
                }
                let mut q = [[_mm512_setzero_si512(); 8]; 2];
                for (i, line) in lines.iter().enumerate() {
                    [q[0][i], q[1][i]] = split(load(line));
                    ask(4 + 8 * p + i);
                }
                for (sum, x) in sums.iter_mut().zip(xs) {
                    *sum = add(*sum, &q[0], part(&x.q, 2 * p), scales[0]);
                    *sum = add(*sum, &q[1], part(&x.q, 2 * p + 1), scales[1]);
                }
            }
            (0..4).for_each(ask);
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

        /// A sub-block, unpacked.
        #[inline]
        #[target_feature(enable = $features)]
        fn add(sum: __m512i, q: &Weights, x: &[i8; 32], scale: __m512i) -> __m512i {
            let mut sum = sum;
            for run in 0..8 / RUN {
                let mut products = _mm512_setzero_si512();
                for i in RUN * run..RUN * (run + 1) {
                    products = multiply(products, q[i], four(x, i));
                }
                sum = add_scaled(sum, products, scale);
            }
            sum
        }

        /// Two sub-blocks line by line, each of which is used up before the next is unpacked, with
        /// a call of `ask` for each.
        #[inline]
        #[target_feature(enable = $features)]
        fn add_lone(
            sum: __m512i,
            lines: &[[[u8; 4]; 16]; 8],
            x: [&[i8; 32]; 2],
            scales: [__m512i; 2],
            ask: impl Fn(usize),
        ) -> __m512i {
            let mut sum = sum;
            for run in 0..8 / RUN {
                let mut products = [_mm512_setzero_si512(); 2];
                for i in RUN * run..RUN * (run + 1) {
                    let q = split(load(&lines[i]));
                    for n in 0..2 {
                        products[n] = multiply(products[n], q[n], four(x[n], i));
                    }
                    ask(i);
                    products[0] = stay(products[0]);
                }
                for n in 0..2 {
                    sum = add_scaled(sum, products[n], scales[n]);
                }
            }
            sum
        }
    };
}

/// With VNNI: fours of products in 32 bits.
pub(super) mod vnni {
    use super::*;

    /// 16 products are at most 16 * 15 * 128, so the lower half of a lane is its value, and the
    /// zero above the scale hides the upper one.
    const RUN: usize = 4;

    panel_kernel!("avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni");

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn spread(scale: __m512i) -> __m512i {
        scale
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn multiply(products: __m512i, q: __m512i, x: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(products, q, x)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn add_scaled(sum: __m512i, products: __m512i, scale: __m512i) -> __m512i {
        _mm512_dpwssd_epi32(sum, products, scale)
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

    /// Eight pairs are at most 8 * 2 * 15 * 128, which fits in 16 bits.
    const RUN: usize = 8;

    panel_kernel!("avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq");

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn spread(scale: __m512i) -> __m512i {
        twice(scale)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn multiply(products: __m512i, q: __m512i, x: __m512i) -> __m512i {
        _mm512_add_epi16(products, _mm512_maddubs_epi16(q, x))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn add_scaled(sum: __m512i, products: __m512i, scale: __m512i) -> __m512i {
        _mm512_add_epi32(sum, _mm512_madd_epi16(products, scale))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn add_mins(sum: __m512i, mins: __m512i, sums: __m512i) -> __m512i {
        _mm512_add_epi32(sum, _mm512_madd_epi16(mins, sums))
    }
}
