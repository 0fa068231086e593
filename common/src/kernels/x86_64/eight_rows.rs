//! One Q4_K block of each of eight rows, a row a lane of 256 bits: AVX2 or AVX-VNNI. A panel is
//! taken in two halves.

use std::arch::x86_64::*;

use super::part;
use super::sixteen::request;
use super::step::{Step, twice};
use crate::kernels::q4_k::Rows;
use crate::kernels::sixteen::{Ahead, Places};
use crate::quant::{BlockQ8K, PanelBlock};

/// Tokens whose integer sums are kept while a part of the block meets them.
const TOKENS: usize = 64;

/// Bytes of eight blocks.
const HALF_BYTES: usize = 8 * 144;

/// Where the blocks of eight rows are.
trait Eight: Copy {
    /// 16 bytes at `16 * at` of every row, as four vectors of one word a row.
    ///
    /// # Safety
    /// The CPU has AVX2.
    unsafe fn words(self, at: usize) -> [__m256i; 4];
}

impl Eight for Rows<'_, 8> {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn words(self, at: usize) -> [__m256i; 4] {
        let load = |r: usize| {
            let bytes: &[u8; 16] = part(self.row(r), at);
            // SAFETY: the reference is valid for 16 bytes, which need no alignment.
            unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
        };
        transpose(load)
    }
}

/// Eight rows of a panel, the first or the last ones.
#[derive(Clone, Copy)]
struct Half<'a> {
    panel: &'a PanelBlock,
    half: usize,
}

impl Eight for Half<'_> {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn words(self, at: usize) -> [__m256i; 4] {
        let four: &[[[u8; 4]; 16]; 4] = part(self.panel, at);
        std::array::from_fn(|i| {
            let words: &[[u8; 4]; 8] = part(&four[i], self.half);
            // SAFETY: the reference is valid for 32 bytes, which need no alignment.
            unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
        })
    }
}

/// A panel times activations; see [`crate::kernels::row::RowKernel::q4_k_panel`].
#[target_feature(enable = "avx2,f16c")]
pub(super) fn q4_k_panel<S: Step, const FRESH: bool>(
    panel: &[PanelBlock],
    xs: &[&BlockQ8K],
    ahead: impl Fn(usize) -> Ahead,
    out: &mut Places<'_>,
) {
    let tokens = xs.len().checked_div(panel.len()).unwrap_or(0);
    for (b, (block, xs)) in panel.iter().zip(xs.chunks(tokens.max(1))).enumerate() {
        out.block = b;
        let ahead = ahead(b);
        for half in 0..2 {
            let w = Half { panel: block, half };
            let at = half * HALF_BYTES;
            let ahead = [ahead.far, ahead.near].map(|from| from.wrapping_add(at));
            for (i, xs) in xs.chunks(TOKENS).enumerate() {
                with_sums::<S, 2>(w, xs, ahead, |head, mins, sums| {
                    for (t, (sum, x)) in sums.iter().zip(xs).enumerate() {
                        let out: &mut [f32; 8] =
                            &mut out.of(TOKENS * i + t).as_chunks_mut().0[half];
                        if FRESH {
                            *out = [0.0; 8];
                        }
                        head.add_terms(*sum, mins, x, out);
                    }
                });
            }
        }
    }
}

/// `out[t][r] += w[r] · xs[t]`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn q4_k_eight<S: Step>(
    w: Rows<'_, 8>,
    xs: &[&BlockQ8K],
    ahead: *const u8,
    out: &mut [[f32; 8]],
) {
    for (xs, out) in xs.chunks(TOKENS).zip(out.chunks_mut(TOKENS)) {
        with_sums::<S, 1>(w, xs, [ahead], |head, mins, sums| {
            for ((sum, x), out) in sums.iter().zip(xs).zip(out) {
                head.add_terms(*sum, mins, x, out);
            }
        });
    }
}

/// Asks for as many bytes at each of `ahead`; calls `then` with the block's scales, its mins, and the integer sums of up to [`TOKENS`]
/// activations.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn with_sums<S: Step, const A: usize>(
    w: impl Eight,
    xs: &[&BlockQ8K],
    ahead: [*const u8; A],
    then: impl FnOnce(&Head, &[__m256i; 8], &[__m256i]),
) {
    // Clearing the sums of absent tokens would cost more than a few tokens' products.
    match xs.len() {
        1 => add_block::<S, A, 1>(w, xs, ahead, then),
        0..=4 => add_block::<S, A, 4>(w, xs, ahead, then),
        5..=16 => add_block::<S, A, 16>(w, xs, ahead, then),
        _ => add_block::<S, A, TOKENS>(w, xs, ahead, then),
    }
}

/// Up to `T` activations.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_block<S: Step, const A: usize, const T: usize>(
    w: impl Eight,
    xs: &[&BlockQ8K],
    ahead: [*const u8; A],
    then: impl FnOnce(&Head, &[__m256i; 8], &[__m256i]),
) {
    // SAFETY: the enabled features hold what the method asks for.
    let head = Head::new(unsafe { w.words(0) });
    ahead.iter().for_each(|from| request::<2>(*from, 0));
    let mut sums = [_mm256_setzero_si256(); T];
    for p in 0..4 {
        let q = nibbles(w, p);
        ahead.iter().for_each(|from| request::<4>(*from, 2 + 4 * p));
        for (i, q) in q.iter().enumerate() {
            let j = 2 * p + i;
            // SAFETY: the kernels that name `S` have seen its instructions on this CPU.
            let scale = unsafe { S::spread(byte(&head.scales, j)) };
            for (sum, x) in sums.iter_mut().zip(xs) {
                // SAFETY: the kernels that name `S` have seen its instructions on this CPU.
                *sum = unsafe { S::add_scaled(*sum, q, part(&x.q, j), scale) };
            }
        }
    }
    let mins: [__m256i; 8] = std::array::from_fn(|j| twice(byte(&head.mins, j)));
    then(&head, &mins, &sums);
}

/// Eight loads of four words, as four vectors of one word a load.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(load: impl Fn(usize) -> __m128i) -> [__m256i; 4] {
    let rows: [__m256i; 4] = std::array::from_fn(|r| _mm256_set_m128i(load(4 + r), load(r)));
    let low = [
        _mm256_unpacklo_epi32(rows[0], rows[1]),
        _mm256_unpacklo_epi32(rows[2], rows[3]),
    ];
    let high = [
        _mm256_unpackhi_epi32(rows[0], rows[1]),
        _mm256_unpackhi_epi32(rows[2], rows[3]),
    ];
    [
        _mm256_unpacklo_epi64(low[0], low[1]),
        _mm256_unpackhi_epi64(low[0], low[1]),
        _mm256_unpacklo_epi64(high[0], high[1]),
        _mm256_unpackhi_epi64(high[0], high[1]),
    ]
}

/// Sub-blocks `2 p` and `2 p + 1`, four weights of every row a vector.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(w: impl Eight, p: usize) -> [[__m256i; 8]; 2] {
    let mask = _mm256_set1_epi8(15);
    let mut q = [[_mm256_setzero_si256(); 8]; 2];
    for half in 0..2 {
        // SAFETY: the enabled feature is what the method asks for.
        let packed = unsafe { w.words(1 + 2 * p + half) };
        for (i, packed) in packed.into_iter().enumerate() {
            let at = 4 * half + i;
            q[0][at] = _mm256_and_si256(packed, mask);
            q[1][at] = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask);
        }
    }
    q
}

/// Scales of the blocks.
struct Head {
    /// Sub-blocks 0..4, and 4..8, one a byte.
    scales: [__m256i; 2],
    mins: [__m256i; 2],
    d: __m256,
    dmin: __m256,
}

impl Head {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn new([halves, scales, mins, rest]: [__m256i; 4]) -> Self {
        let six = _mm256_set1_epi8(0x3f);
        let four = _mm256_set1_epi8(0x0f);
        let top = _mm256_set1_epi8(0x30);
        let upper = |v| _mm256_and_si256(_mm256_srli_epi32::<2>(v), top);
        let low = _mm256_and_si256(rest, four);
        let high = _mm256_and_si256(_mm256_srli_epi32::<4>(rest), four);
        Self {
            scales: [
                _mm256_and_si256(scales, six),
                _mm256_or_si256(low, upper(scales)),
            ],
            mins: [
                _mm256_and_si256(mins, six),
                _mm256_or_si256(high, upper(mins)),
            ],
            d: halves_to_floats(_mm256_and_si256(halves, _mm256_set1_epi32(0xffff))),
            dmin: halves_to_floats(_mm256_srli_epi32::<16>(halves)),
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn add_terms(&self, sum: __m256i, mins: &[__m256i; 8], x: &BlockQ8K, out: &mut [f32; 8]) {
        let mut least = _mm256_setzero_si256();
        for (min, pair) in mins.iter().zip(x.bsums.as_chunks::<2>().0) {
            let pair = u32::from(pair[0] as u16) | u32::from(pair[1] as u16) << 16;
            let products = _mm256_madd_epi16(*min, _mm256_set1_epi32(pair as i32));
            least = _mm256_add_epi32(least, products);
        }
        let d8 = _mm256_set1_ps(x.d);
        let value = _mm256_mul_ps(_mm256_mul_ps(d8, self.d), _mm256_cvtepi32_ps(sum));
        let least = _mm256_mul_ps(_mm256_mul_ps(d8, self.dmin), _mm256_cvtepi32_ps(least));
        let term = _mm256_sub_ps(value, least);
        // SAFETY: the reference is valid for eight floats, which need no alignment.
        let old = unsafe { _mm256_loadu_ps(out.as_ptr()) };
        // SAFETY: the reference is valid for eight floats, which need no alignment.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_add_ps(old, term)) };
    }
}

/// Half floats in the lower parts of words.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn halves_to_floats(words: __m256i) -> __m256 {
    let packed = _mm256_packus_epi32(words, words);
    let packed = _mm256_permute4x64_epi64::<0b00_00_10_00>(packed);
    _mm256_cvtph_ps(_mm256_castsi256_si128(packed))
}

/// The byte of sub-block `j` of every row, zero-extended.
#[inline]
#[target_feature(enable = "avx2")]
fn byte(bytes: &[__m256i; 2], j: usize) -> __m256i {
    let shift = _mm_cvtsi32_si128(8 * (j % 4) as i32);
    _mm256_and_si256(
        _mm256_srl_epi32(bytes[j / 4], shift),
        _mm256_set1_epi32(255),
    )
}
