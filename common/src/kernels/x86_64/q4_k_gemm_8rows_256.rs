//! GEMM of Q4_K: one block of each of eight rows, a row a lane of 32 bits: AVX2 or AVX-VNNI.
//!
//! `q4_k_16rows` does the same with vectors twice as wide. Each line of both is an instruction of
//! its own width, so that they would share nothing but its name.

use std::arch::x86_64::*;

use super::byte_products::{ByteProducts, add_sub_block};
use super::vectors::{part, prefetch_lines};
use crate::kernels::operands::q4_k_blocks::BlockRows;
use crate::quant::BlockQ8K;

/// Activations whose integer sums are kept while they are multiplied with a part of the block.
const TOKENS: usize = 64;

/// `out[t][r] += w[r] · xs[t]`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn q4_k_gemm_8rows<S: ByteProducts>(
    w: BlockRows<'_, 8>,
    xs: &[&BlockQ8K],
    ahead: *const u8,
    out: &mut [[f32; 8]],
) {
    for (xs, out) in xs.chunks(TOKENS).zip(out.chunks_mut(TOKENS)) {
        // Clearing the sums of absent tokens would cost more than a few tokens' products.
        match xs.len() {
            0..=4 => add_block::<S, 4>(w, xs, ahead, out),
            5..=16 => add_block::<S, 16>(w, xs, ahead, out),
            _ => add_block::<S, TOKENS>(w, xs, ahead, out),
        }
    }
}

/// Up to `T` activations.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_block<S: ByteProducts, const T: usize>(
    w: BlockRows<'_, 8>,
    xs: &[&BlockQ8K],
    ahead: *const u8,
    out: &mut [[f32; 8]],
) {
    let scales = Scales8::new(words(&w, 0));
    prefetch_lines::<2>(ahead, 0);
    let mut sums = [_mm256_setzero_si256(); T];
    for p in 0..4 {
        let q = nibbles(&w, p);
        prefetch_lines::<4>(ahead, 2 + 4 * p);
        for (i, q) in q.iter().enumerate() {
            let j = 2 * p + i;
            let scale = scales.scale::<S>(j);
            for (sum, x) in sums.iter_mut().zip(xs) {
                // SAFETY: the kernels that name `S` have seen its instructions on this CPU.
                *sum = unsafe { add_sub_block::<S>(*sum, q, part(&x.q, j), scale) };
            }
        }
    }
    let mins = scales.all_mins();
    for ((sum, x), out) in sums.iter().zip(xs).zip(out) {
        scales.add_terms(*sum, &mins, x, out);
    }
}

/// 16 bytes at `16 * at` of every row, as four vectors of one word a row.
#[inline]
#[target_feature(enable = "avx2")]
fn words(w: &BlockRows<'_, 8>, at: usize) -> [__m256i; 4] {
    let load = |r: usize| {
        let bytes: &[u8; 16] = part(w.row(r), at);
        // SAFETY: the reference is valid for 16 bytes, which need no alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    };
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
fn nibbles(w: &BlockRows<'_, 8>, p: usize) -> [[__m256i; 8]; 2] {
    let mut q = [[_mm256_setzero_si256(); 8]; 2];
    for half in 0..2 {
        for (i, packed) in words(w, 1 + 2 * p + half).into_iter().enumerate() {
            let at = 4 * half + i;
            [q[0][at], q[1][at]] = split(packed);
        }
    }
    q
}

/// The low and the high nibbles of every byte.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn split(packed: __m256i) -> [__m256i; 2] {
    let mask = _mm256_set1_epi8(15);
    let high = _mm256_srli_epi16::<4>(packed);
    [_mm256_and_si256(packed, mask), _mm256_and_si256(high, mask)]
}

/// Scales8 of the blocks.
pub(super) struct Scales8 {
    /// Sub-blocks 0..4, and 4..8, one a byte.
    scales: [__m256i; 2],
    mins: [__m256i; 2],
    d: __m256,
    dmin: __m256,
}

impl Scales8 {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn new([halves, scales, mins, rest]: [__m256i; 4]) -> Self {
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

    /// The scale of sub-block `j`, as [`ByteProducts::add_scaled`] takes it.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn scale<S: ByteProducts>(&self, j: usize) -> __m256i {
        byte(S::TWICE, &self.scales, j)
    }

    /// The min of each sub-block, in both halves of its lane.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn all_mins(&self) -> [__m256i; 8] {
        std::array::from_fn(|j| byte(true, &self.mins, j))
    }

    /// Adds what the integer sums of every row come to.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn add_terms(
        &self,
        sum: __m256i,
        mins: &[__m256i; 8],
        x: &BlockQ8K,
        out: &mut [f32; 8],
    ) {
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

/// The byte of sub-block `j` of every row, zero-extended or in both halves of its lane.
#[inline]
#[target_feature(enable = "avx2")]
fn byte(twice: bool, bytes: &[__m256i; 2], j: usize) -> __m256i {
    static PICKS: [[[u8; 32]; 4]; 2] = [picks(false), picks(true)];
    let pick = &PICKS[usize::from(twice)][j % 4];
    // SAFETY: the reference is valid for 32 bytes, which need no alignment.
    let pick = unsafe { _mm256_loadu_si256(pick.as_ptr().cast()) };
    _mm256_shuffle_epi8(bytes[j / 4], pick)
}

/// Shuffles that pick byte `i` of every word: one instruction, not a shift, a mask and, to have it
/// twice, another shift.
const fn picks(twice: bool) -> [[u8; 32]; 4] {
    const NONE: u8 = 0x80;
    let mut all = [[NONE; 32]; 4];
    let mut n = 0;
    while n < 4 * 32 {
        let (i, at) = (n / 32, n % 32);
        if at % 4 == 0 || twice && at % 4 == 2 {
            // They work within 16 bytes.
            all[i][at] = (at % 16 / 4 * 4 + i) as u8;
        }
        n += 1;
    }
    all
}
