//! One Q4_K block of each of sixteen rows, a row a lane: AVX-512 with VNNI.

use std::arch::x86_64::*;

use super::part;
use crate::kernels::q4_k::Rows;
use crate::kernels::sixteen::Sums;
use crate::quant::BlockQ8K;

/// Tokens whose integer sums are kept while a part of the block meets them.
const TOKENS: usize = 64;

/// `out[t][r] += w[r] · xs[t]`.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn q4_k_sixteen(w: Rows<'_, 16>, xs: &[&BlockQ8K], ahead: *const u8, out: &mut [Sums]) {
    for (xs, out) in xs.chunks(TOKENS).zip(out.chunks_mut(TOKENS)) {
        // Clearing the sums of absent tokens would cost more than a few tokens' products.
        match xs.len() {
            0 | 1 => add_block::<1>(w, xs, ahead, out),
            2..=4 => add_block::<4>(w, xs, ahead, out),
            5..=16 => add_block::<16>(w, xs, ahead, out),
            17..=32 => add_block::<32>(w, xs, ahead, out),
            _ => add_block::<TOKENS>(w, xs, ahead, out),
        }
    }
}

/// Up to `T` activations.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn add_block<const T: usize>(
    w: Rows<'_, 16>,
    xs: &[&BlockQ8K],
    ahead: *const u8,
    out: &mut [Sums],
) {
    let head = Head::new(words(&w, 0));
    request::<4>(ahead, 0);
    let mut sums = [_mm512_setzero_si512(); T];
    for p in 0..4 {
        let q = nibbles(&w, p);
        request::<8>(ahead, 4 + 8 * p);
        let scales = [head.scale(2 * p), head.scale(2 * p + 1)];
        for (sum, x) in sums.iter_mut().zip(xs) {
            *sum = add_pair(*sum, &q, scales, part(&x.q, p));
        }
    }
    for ((sum, x), out) in sums.iter().zip(xs).zip(out) {
        head.add_terms(*sum, x, out);
    }
}

/// 16 bytes at `16 * at` of every row, as four vectors of one word a row.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn words(w: &Rows<'_, 16>, at: usize) -> [__m512i; 4] {
    let load = |r: usize| {
        let bytes: &[u8; 16] = part(w.row(r), at);
        // SAFETY: the reference is valid for 16 bytes, which need no alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    };
    transpose(load)
}

/// Sixteen loads of four words, as four vectors of one word a load.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(load: impl Fn(usize) -> __m128i) -> [__m512i; 4] {
    // Lane l of `rows[i]` is load 4 l + i, so that the unpacking below ends in the loads' order.
    let mut rows = [_mm512_setzero_si512(); 4];
    for (i, rows) in rows.iter_mut().enumerate() {
        let all = _mm512_castsi128_si512(load(i));
        let all = _mm512_inserti32x4::<1>(all, load(4 + i));
        let all = _mm512_inserti32x4::<2>(all, load(8 + i));
        *rows = _mm512_inserti32x4::<3>(all, load(12 + i));
    }
    let low = [
        _mm512_unpacklo_epi32(rows[0], rows[1]),
        _mm512_unpacklo_epi32(rows[2], rows[3]),
    ];
    let high = [
        _mm512_unpackhi_epi32(rows[0], rows[1]),
        _mm512_unpackhi_epi32(rows[2], rows[3]),
    ];
    [
        _mm512_unpacklo_epi64(low[0], low[1]),
        _mm512_unpackhi_epi64(low[0], low[1]),
        _mm512_unpacklo_epi64(high[0], high[1]),
        _mm512_unpackhi_epi64(high[0], high[1]),
    ]
}

/// Sub-blocks `2 p` and `2 p + 1`, four weights of every row a vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn nibbles(w: &Rows<'_, 16>, p: usize) -> [__m512i; 16] {
    let mask = _mm512_set1_epi8(15);
    let mut q = [_mm512_setzero_si512(); 16];
    for half in 0..2 {
        for (i, packed) in words(w, 1 + 2 * p + half).into_iter().enumerate() {
            let at = 4 * half + i;
            q[at] = _mm512_and_si512(packed, mask);
            q[8 + at] = _mm512_and_si512(_mm512_srli_epi16::<4>(packed), mask);
        }
    }
    q
}

/// Adds two sub-blocks' scaled integer sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add_pair(sum: __m512i, q: &[__m512i; 16], scales: [__m512i; 2], x: &[i8; 64]) -> __m512i {
    let x = x.as_chunks::<4>().0;
    let mut all = sum;
    for run in 0..4 {
        let mut products = _mm512_setzero_si512();
        for i in 4 * run..4 * run + 4 {
            let four = x[i].map(|v| v as u8);
            let four = _mm512_set1_epi32(i32::from_le_bytes(four));
            products = _mm512_dpbusd_epi32(products, q[i], four);
        }
        // 16 products are at most 16 * 15 * 128, so the lower half of a lane is its value, and
        // the zero above the scale hides the upper one.
        all = _mm512_dpwssd_epi32(all, products, scales[run / 2]);
    }
    all
}

/// Scales of the blocks.
pub(super) struct Head {
    /// Sub-blocks 0..4, and 4..8, one a byte.
    scales: [__m512i; 2],
    mins: [__m512i; 2],
    d: __m512,
    dmin: __m512,
}

impl Head {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new([halves, scales, mins, rest]: [__m512i; 4]) -> Self {
        let six = _mm512_set1_epi8(0x3f);
        let four = _mm512_set1_epi8(0x0f);
        let top = _mm512_set1_epi8(0x30);
        let upper = |v| _mm512_and_si512(_mm512_srli_epi32::<2>(v), top);
        let low = _mm512_and_si512(rest, four);
        let high = _mm512_and_si512(_mm512_srli_epi32::<4>(rest), four);
        let float = |v| _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
        Self {
            scales: [
                _mm512_and_si512(scales, six),
                _mm512_or_si512(low, upper(scales)),
            ],
            mins: [
                _mm512_and_si512(mins, six),
                _mm512_or_si512(high, upper(mins)),
            ],
            d: float(halves),
            dmin: float(_mm512_srli_epi32::<16>(halves)),
        }
    }

    /// The scale of sub-block `j`, zero-extended.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn scale(&self, j: usize) -> __m512i {
        byte(self.scales[j / 4], j % 4)
    }

    /// The min of sub-block `j`, zero-extended.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn min(&self, j: usize) -> __m512i {
        byte(self.mins[j / 4], j % 4)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn add_terms(&self, sum: __m512i, x: &BlockQ8K, out: &mut Sums) {
        let mut mins = _mm512_setzero_si512();
        for (j, pair) in x.bsums.as_chunks::<2>().0.iter().enumerate() {
            let min = self.min(j);
            let twice = _mm512_or_si512(min, _mm512_slli_epi32::<16>(min));
            let pair = u32::from(pair[0] as u16) | u32::from(pair[1] as u16) << 16;
            mins = _mm512_dpwssd_epi32(mins, twice, _mm512_set1_epi32(pair as i32));
        }
        self.add_sums(sum, mins, x, out);
    }

    /// Adds what the two integer sums of every row come to.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn add_sums(&self, sum: __m512i, mins: __m512i, x: &BlockQ8K, out: &mut Sums) {
        let d8 = _mm512_set1_ps(x.d);
        let value = _mm512_mul_ps(_mm512_mul_ps(d8, self.d), _mm512_cvtepi32_ps(sum));
        let least = _mm512_mul_ps(_mm512_mul_ps(d8, self.dmin), _mm512_cvtepi32_ps(mins));
        let term = _mm512_sub_ps(value, least);
        // SAFETY: the reference is valid for 16 floats, which need no alignment.
        let old = unsafe { _mm512_loadu_ps(out.as_ptr()) };
        // SAFETY: the reference is valid for 16 floats, which need no alignment.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_add_ps(old, term)) };
    }
}

/// Byte `i` of every word.
#[inline]
#[target_feature(enable = "avx512f")]
fn byte(words: __m512i, i: usize) -> __m512i {
    let shift = _mm_cvtsi32_si128(8 * i as i32);
    _mm512_and_si512(_mm512_srl_epi32(words, shift), _mm512_set1_epi32(255))
}

/// Asks for `N` cache lines, the `first` one of those at `ahead` and its successors.
#[inline(always)]
pub(super) fn request<const N: usize>(ahead: *const u8, first: usize) {
    for line in first..first + N {
        // SAFETY: a prefetch reads nothing, whatever the address; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * line).cast()) };
    }
}

/// Asks for the cache lines of `bytes`, in their order.
pub(super) fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(64) {
        // SAFETY: a prefetch reads nothing; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}
