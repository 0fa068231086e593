//! One Q4_K block of each of eight rows, a row a lane: AVX2.

use std::arch::x86_64::*;

use super::part;
use super::sixteen::request;
use crate::kernels::q4_k::Rows;
use crate::quant::BlockQ8K;

/// Tokens whose integer sums are kept while a part of the block meets them.
const TOKENS: usize = 64;

type Eight<'a> = Rows<'a, 8>;

/// `out[t][r] += w[r] · xs[t]`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn q4_k_eight(w: Eight<'_>, xs: &[&BlockQ8K], ahead: *const u8, out: &mut [[f32; 8]]) {
    for (xs, out) in xs.chunks(TOKENS).zip(out.chunks_mut(TOKENS)) {
        // Clearing the sums of absent tokens would cost more than a few tokens' products.
        match xs.len() {
            0..=4 => add_block::<4>(w, xs, ahead, out),
            5..=16 => add_block::<16>(w, xs, ahead, out),
            _ => add_block::<TOKENS>(w, xs, ahead, out),
        }
    }
}

/// Up to `T` activations.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_block<const T: usize>(
    w: Eight<'_>,
    xs: &[&BlockQ8K],
    ahead: *const u8,
    out: &mut [[f32; 8]],
) {
    let head = Head::new(words(&w, 0));
    request::<2>(ahead, 0);
    let mut sums = [_mm256_setzero_si256(); T];
    for p in 0..4 {
        let packed = [words(&w, 1 + 2 * p), words(&w, 2 + 2 * p)];
        request::<4>(ahead, 2 + 4 * p);
        let low = _mm256_set1_epi8(15);
        for high in 0..2 {
            let mut q = [_mm256_setzero_si256(); 8];
            for (q, packed) in q.iter_mut().zip(packed.as_flattened()) {
                let shifted = match high {
                    0 => *packed,
                    _ => _mm256_srli_epi16::<4>(*packed),
                };
                *q = _mm256_and_si256(shifted, low);
            }
            let scale = twice(byte(head.scales[p / 2], (2 * p + high) % 4));
            for (sum, x) in sums.iter_mut().zip(xs) {
                *sum = add_sub_block(*sum, &q, scale, part(&x.q, 2 * p + high));
            }
        }
    }
    for ((sum, x), out) in sums.iter().zip(xs).zip(out) {
        head.add_terms(*sum, x, out);
    }
}

/// 16 bytes at `16 * at` of every row, as four vectors of one word a row.
#[inline]
#[target_feature(enable = "avx2")]
fn words(w: &Eight<'_>, at: usize) -> [__m256i; 4] {
    let load = |r: usize| {
        let bytes: &[u8; 16] = part(w.row(r), at);
        // SAFETY: the reference is valid for 16 bytes, which need no alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    };
    let both = |r: usize| _mm256_set_m128i(load(r + 4), load(r));
    let rows = [both(0), both(1), both(2), both(3)];
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

/// Adds a sub-block's scaled integer sum.
#[inline]
#[target_feature(enable = "avx2")]
fn add_sub_block(sum: __m256i, q: &[__m256i; 8], scale: __m256i, x: &[i8; 32]) -> __m256i {
    // Two chains, so that additions need not wait for each other. A lane of 16 bits takes 16
    // products, at most 16 * 15 * 128.
    let mut halves = [_mm256_setzero_si256(); 2];
    for (i, (q, x)) in q.iter().zip(x.as_chunks::<4>().0).enumerate() {
        let four = _mm256_set1_epi32(i32::from_le_bytes(x.map(|v| v as u8)));
        let half = &mut halves[i % 2];
        *half = _mm256_add_epi16(*half, _mm256_maddubs_epi16(*q, four));
    }
    let pairs = _mm256_add_epi16(halves[0], halves[1]);
    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, scale))
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
        let float = |v| {
            let packed = _mm256_packus_epi32(v, v);
            let packed = _mm256_permute4x64_epi64::<0b00_00_10_00>(packed);
            _mm256_cvtph_ps(_mm256_castsi256_si128(packed))
        };
        Self {
            scales: [
                _mm256_and_si256(scales, six),
                _mm256_or_si256(low, upper(scales)),
            ],
            mins: [
                _mm256_and_si256(mins, six),
                _mm256_or_si256(high, upper(mins)),
            ],
            d: float(_mm256_and_si256(halves, _mm256_set1_epi32(0xffff))),
            dmin: float(_mm256_srli_epi32::<16>(halves)),
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn add_terms(&self, sum: __m256i, x: &BlockQ8K, out: &mut [f32; 8]) {
        let mut mins = _mm256_setzero_si256();
        for (j, pair) in x.bsums.as_chunks::<2>().0.iter().enumerate() {
            let min = twice(byte(self.mins[j / 4], j % 4));
            let pair = u32::from(pair[0] as u16) | u32::from(pair[1] as u16) << 16;
            let products = _mm256_madd_epi16(min, _mm256_set1_epi32(pair as i32));
            mins = _mm256_add_epi32(mins, products);
        }
        let d8 = _mm256_set1_ps(x.d);
        let value = _mm256_mul_ps(_mm256_mul_ps(d8, self.d), _mm256_cvtepi32_ps(sum));
        let least = _mm256_mul_ps(_mm256_mul_ps(d8, self.dmin), _mm256_cvtepi32_ps(mins));
        let term = _mm256_sub_ps(value, least);
        // SAFETY: the reference is valid for eight floats, which need no alignment.
        let old = unsafe { _mm256_loadu_ps(out.as_ptr()) };
        // SAFETY: the reference is valid for eight floats, which need no alignment.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_add_ps(old, term)) };
    }
}

/// Byte `i` of every word.
#[inline]
#[target_feature(enable = "avx2")]
fn byte(words: __m256i, i: usize) -> __m256i {
    let shift = _mm_cvtsi32_si128(8 * i as i32);
    _mm256_and_si256(_mm256_srl_epi32(words, shift), _mm256_set1_epi32(255))
}

/// A word of 16 bits in both halves of each word of 32.
#[inline]
#[target_feature(enable = "avx2")]
fn twice(words: __m256i) -> __m256i {
    _mm256_or_si256(words, _mm256_slli_epi32::<16>(words))
}
