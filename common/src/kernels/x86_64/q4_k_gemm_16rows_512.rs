//! GEMM of Q4_K: sixteen rows, a row a lane, plain or in a panel: AVX-512, with VNNI and without.
//!
//! Plain rows are expensive to unpack: that is done once, while the integer sums of all activations are
//! in memory. In a panel a word of every row is one load, so that unpacking is cheap: activations
//! come in sets whose sums stay in registers, and each set unpacks again.

use std::arch::asm;
use std::arch::x86_64::*;

use super::q4_k_16rows::{Scales16, SubBlock, four, nibbles, split, twice, two};
use super::vectors::{load_f32x16, part, prefetch_lines, set_of, store_f32x16};
use crate::kernels::operands::q4_k_blocks::{BlockRows, PanelResults, Q4KRowSums};
use crate::quant::{BlockQ8K, PanelBlock};

/// Activations of a set that is multiplied with a panel, at most.
const SET: usize = 8;

/// Activations that are multiplied with plain rows as these are unpacked, at most.
const MANY: usize = 64;

/// A word of each row.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(words: &[[u8; 4]; 16]) -> __m512i {
    // SAFETY: the reference is valid for 64 bytes, which need no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// Keeps prefetches where they are: left alone, a compiler gathers those of a block, and a burst
/// delays what is needed first.
#[inline]
#[target_feature(enable = "avx512f")]
fn stay(mut products: __m512i) -> __m512i {
    // SAFETY: the template is empty but for a comment, so it changes nothing.
    unsafe { asm!("/* {} */", inout(zmm_reg) products, options(nostack, preserves_flags)) }
    products
}

/// Both loops, compiled for `$features`, whose module tells how bytes are multiplied: `multiply`
/// adds products of four weights a lane, `RUN` times at most before `add_scaled` adds them to the
/// sums, whose scale it takes `twice` or not (`spread`); `add_mins` adds two products of mins and
/// activation sums in each lane.
macro_rules! sixteen_rows {
    ($features:literal) => {
        /// `out[t][r] += w[r] · xs[t]`, prefetching as many rows from `ahead`.
        #[target_feature(enable = $features)]
        pub(in super::super) fn q4_k_gemm_16rows(
            w: BlockRows<'_, 16>,
            xs: &[&BlockQ8K],
            ahead: *const u8,
            out: &mut [Q4KRowSums],
        ) {
            for (xs, out) in xs.chunks(MANY).zip(out.chunks_mut(MANY)) {
                // Clearing the sums of absent tokens would cost more than a few tokens' products.
                match xs.len() {
                    0..=4 => add_many::<4>(w, xs, ahead, out),
                    5..=16 => add_many::<16>(w, xs, ahead, out),
                    17..=32 => add_many::<32>(w, xs, ahead, out),
                    _ => add_many::<MANY>(w, xs, ahead, out),
                }
            }
        }

        /// Up to `T` activations.
        #[inline]
        #[target_feature(enable = $features)]
        fn add_many<const T: usize>(
            w: BlockRows<'_, 16>,
            xs: &[&BlockQ8K],
            ahead: *const u8,
            out: &mut [Q4KRowSums],
        ) {
            let rows = Scales16::of_rows(&w);
            prefetch_lines::<4>(ahead, 0);
            let mut sums = [_mm512_setzero_si512(); T];
            for p in 0..4 {
                let q = nibbles(&w, p);
                prefetch_lines::<8>(ahead, 4 + 8 * p);
                let scales = [spread(rows.scale(2 * p)), spread(rows.scale(2 * p + 1))];
                for (sum, x) in sums.iter_mut().zip(xs) {
                    *sum = add(*sum, &q[0], part(&x.q, 2 * p), scales[0]);
                    *sum = add(*sum, &q[1], part(&x.q, 2 * p + 1), scales[1]);
                }
            }
            let mins = rows.all_mins();
            for ((sum, x), out) in sums.iter().zip(xs).zip(out) {
                let terms = rows.terms(*sum, sum_of_mins(&mins, x), x.d);
                store_f32x16(_mm512_add_ps(load_f32x16(out), terms), out);
            }
        }

        /// The products of mins and activation sums of every row.
        #[inline]
        #[target_feature(enable = $features)]
        fn sum_of_mins(mins: &[__m512i; 8], x: &BlockQ8K) -> __m512i {
            let mut sum = _mm512_setzero_si512();
            for (k, min) in mins.iter().enumerate() {
                sum = add_mins(sum, *min, two(&x.bsums, k));
            }
            sum
        }

        /// A panel times activations; see [`crate::kernels::instruction_set::InstructionSet::q4_k_panel_gemm`].
        #[target_feature(enable = $features)]
        pub(in super::super) fn q4_k_panel_gemm<const FRESH: bool>(
            panel: &[PanelBlock],
            xs: &[&BlockQ8K],
            ahead: impl Fn(usize) -> *const u8,
            out: &mut PanelResults<'_>,
        ) {
            let tokens = xs.len().checked_div(panel.len()).unwrap_or(0);
            let set = set_of(tokens, SET);
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
                    // The first set has prefetched what is ahead.
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
            out: &mut PanelResults<'_>,
        ) {
            let Some(xs) = xs.first_chunk::<T>() else {
                return;
            };
            let prefetch = |line: usize| {
                prefetch_lines::<1>(ahead, line);
                // Where products are faster than memory, a second prefetch of a line gains a tenth:
                // full queues may drop the first.
                if T <= 4 {
                    prefetch_lines::<1>(ahead, line);
                }
            };
            let rows = Scales16::new([load(&w[0]), load(&w[1]), load(&w[2]), load(&w[3])]);
            let mut sums = [_mm512_setzero_si512(); T];
            for p in 0..4 {
                let scales = [spread(rows.scale(2 * p)), spread(rows.scale(2 * p + 1))];
                let lines = part::<_, 8>(&w[4..], p);
                if let [x] = &xs[..] {
                    let x = [part(&x.q, 2 * p), part(&x.q, 2 * p + 1)];
                    sums[0] = add_one(sums[0], lines, x, scales, |i| prefetch(4 + 8 * p + i));
                    continue;
                }
                let mut q = [[_mm512_setzero_si512(); 8]; 2];
                for (i, line) in lines.iter().enumerate() {
                    [q[0][i], q[1][i]] = split(load(line));
                    prefetch(4 + 8 * p + i);
                }
                for (sum, x) in sums.iter_mut().zip(xs) {
                    *sum = add(*sum, &q[0], part(&x.q, 2 * p), scales[0]);
                    *sum = add(*sum, &q[1], part(&x.q, 2 * p + 1), scales[1]);
                }
            }
            (0..4).for_each(prefetch);
            let mins = rows.all_mins();
            for (t, (sum, x)) in sums.iter().zip(xs).enumerate() {
                let terms = rows.terms(*sum, sum_of_mins(&mins, x), x.d);
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
        fn add(sum: __m512i, q: &SubBlock, x: &[i8; 32], scale: __m512i) -> __m512i {
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
        /// a call of `prefetch` for each.
        #[inline]
        #[target_feature(enable = $features)]
        fn add_one(
            sum: __m512i,
            lines: &[[[u8; 4]; 16]; 8],
            x: [&[i8; 32]; 2],
            scales: [__m512i; 2],
            prefetch: impl Fn(usize),
        ) -> __m512i {
            let mut sum = sum;
            for run in 0..8 / RUN {
                let mut products = [_mm512_setzero_si512(); 2];
                for i in RUN * run..RUN * (run + 1) {
                    let q = split(load(&lines[i]));
                    for n in 0..2 {
                        products[n] = multiply(products[n], q[n], four(x[n], i));
                    }
                    prefetch(i);
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

    sixteen_rows!("avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni");

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

    sixteen_rows!("avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq");

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
