//! GEMM of Q4_K: one block of each of eight rows, a row a lane of 64 bits: AVX-512 with VNNI.
//!
//! Scales, products and results lie otherwise than in the loops with lanes of 32 bits; only the walk
//! over the four parts of a block is alike.

use std::arch::x86_64::*;

use super::vectors::{part, prefetch_lines};
use crate::kernels::operands::q4_k_blocks::BlockRows;
use crate::quant::BlockQ8K;

/// Activations whose integer sums are kept while they are multiplied with a part of the block.
const TOKENS: usize = 16;

/// `out[t][r] += w[r] · xs[t]`.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn q4_k_gemm_8rows(
    w: BlockRows<'_, 8>,
    xs: &[&BlockQ8K],
    ahead: *const u8,
    out: &mut [[f32; 8]],
) {
    for (xs, out) in xs.chunks(TOKENS).zip(out.chunks_mut(TOKENS)) {
        // Clearing the sums of absent tokens would cost more than a few tokens' products.
        match xs.len() {
            0..=2 => add_block::<2>(w, xs, ahead, out),
            3..=4 => add_block::<4>(w, xs, ahead, out),
            5..=8 => add_block::<8>(w, xs, ahead, out),
            _ => add_block::<TOKENS>(w, xs, ahead, out),
        }
    }
}

/// Up to `T` activations.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn add_block<const T: usize>(
    w: BlockRows<'_, 8>,
    xs: &[&BlockQ8K],
    ahead: *const u8,
    out: &mut [[f32; 8]],
) {
    let rows = WideScales8::new(words(&w, 0));
    prefetch_lines::<2>(ahead, 0);
    let mut sums = [_mm512_setzero_si512(); T];
    for p in 0..4 {
        let q = nibbles(&w, p);
        prefetch_lines::<4>(ahead, 2 + 4 * p);
        let scales = [rows.scale(2 * p), rows.scale(2 * p + 1)];
        for (sum, x) in sums.iter_mut().zip(xs) {
            *sum = add_pair(*sum, &q, scales, part(&x.q, p));
        }
    }
    let (pairs, last) = out.as_chunks_mut::<2>();
    for ((xs, sums), out) in xs.chunks_exact(2).zip(sums.as_chunks().0).zip(pairs) {
        let terms = rows.terms(*sums, [xs[0], xs[1]]);
        // SAFETY: the reference is valid for 16 floats, which need no alignment.
        let old = unsafe { _mm512_loadu_ps(out.as_ptr().cast()) };
        // SAFETY: the reference is valid for 16 floats, which need no alignment.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr().cast(), _mm512_add_ps(old, terms)) };
    }
    if let ([out], Some(x)) = (last, xs.last()) {
        let sum = sums[xs.len() - 1];
        let terms = _mm512_castps512_ps256(rows.terms([sum, sum], [x, x]));
        // SAFETY: the reference is valid for eight floats, which need no alignment.
        let old = unsafe { _mm256_loadu_ps(out.as_ptr()) };
        // SAFETY: the reference is valid for eight floats, which need no alignment.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_add_ps(old, terms)) };
    }
}

/// 16 bytes at `16 * at` of every row, as two vectors of eight bytes a row.
#[inline]
#[target_feature(enable = "avx512f")]
fn words(w: &BlockRows<'_, 8>, at: usize) -> [__m512i; 2] {
    let load = |r: usize| {
        let bytes: &[u8; 16] = part(w.row(r), at);
        // SAFETY: the reference is valid for 16 bytes, which need no alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    };
    let every_other = |first: usize| {
        let all = _mm512_castsi128_si512(load(first));
        let all = _mm512_inserti32x4::<1>(all, load(first + 2));
        let all = _mm512_inserti32x4::<2>(all, load(first + 4));
        _mm512_inserti32x4::<3>(all, load(first + 6))
    };
    let (even, odd) = (every_other(0), every_other(1));
    [
        _mm512_unpacklo_epi64(even, odd),
        _mm512_unpackhi_epi64(even, odd),
    ]
}

/// Sub-blocks `2 p` and `2 p + 1`, eight weights of every row a vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nibbles(w: &BlockRows<'_, 8>, p: usize) -> [__m512i; 8] {
    let mask = _mm512_set1_epi8(15);
    let mut q = [_mm512_setzero_si512(); 8];
    for half in 0..2 {
        for (i, packed) in words(w, 1 + 2 * p + half).into_iter().enumerate() {
            let at = 2 * half + i;
            q[at] = _mm512_and_si512(packed, mask);
            q[4 + at] = _mm512_and_si512(_mm512_srli_epi16::<4>(packed), mask);
        }
    }
    q
}

/// Eight bytes in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn eight_bytes(bytes: [u8; 8]) -> __m512i {
    _mm512_set1_epi64(i64::from_le_bytes(bytes))
}

/// Adds two sub-blocks' scaled integer sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add_pair(sum: __m512i, q: &[__m512i; 8], scales: [__m512i; 2], x: &[i8; 64]) -> __m512i {
    let x = x.as_chunks::<8>().0;
    let mut all = sum;
    for ((q, x), scale) in q
        .as_chunks::<4>()
        .0
        .iter()
        .zip(x.as_chunks::<4>().0)
        .zip(scales)
    {
        let mut products = _mm512_setzero_si512();
        for (q, x) in q.iter().zip(x) {
            let x = eight_bytes(x.map(|v| v as u8));
            products = _mm512_dpbusd_epi32(products, *q, x);
        }
        // 16 products are at most 16 * 15 * 128, so the lower half of a word is its value, and
        // the zero above the scale hides the upper one.
        all = _mm512_dpwssd_epi32(all, products, scale);
    }
    all
}

/// The sums of the neighbours in `a`, and those in `b`: two rows of the one, then of the other,
/// in each 128-bit lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_neighbours(a: __m512i, b: __m512i) -> __m512i {
    let (a, b) = (_mm512_castsi512_ps(a), _mm512_castsi512_ps(b));
    let even = _mm512_shuffle_ps::<0b10_00_10_00>(a, b);
    let odd = _mm512_shuffle_ps::<0b11_01_11_01>(a, b);
    _mm512_add_epi32(_mm512_castps_si512(even), _mm512_castps_si512(odd))
}

/// WideScales8 of the blocks.
struct WideScales8 {
    /// Eight of each row, a byte each.
    scales: __m512i,
    mins: __m512i,
    /// Two rows in each 128-bit lane, twice.
    d: __m512,
    dmin: __m512,
}

impl WideScales8 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new([first, second]: [__m512i; 2]) -> Self {
        let four = _mm512_set1_epi8(0x0f);
        let scales = _mm512_shuffle_epi32::<0b11_11_01_01>(first);
        let mins = _mm512_shuffle_epi32::<0b10_10_00_00>(second);
        let rest = _mm512_shuffle_epi32::<0b11_11_01_01>(second);
        let decode = |low: __m512i, rest: __m512i| {
            let top = _mm512_and_si512(_mm512_srli_epi32::<2>(low), _mm512_set1_epi8(0x30));
            let high = _mm512_or_si512(_mm512_and_si512(rest, four), top);
            let low = _mm512_and_si512(low, _mm512_set1_epi8(0x3f));
            _mm512_mask_blend_epi32(0xaaaa, low, high)
        };
        let halves = _mm512_shuffle_epi32::<0b10_00_10_00>(first);
        let float = |v| _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
        Self {
            scales: decode(scales, rest),
            mins: decode(mins, _mm512_srli_epi32::<4>(rest)),
            d: float(halves),
            dmin: float(_mm512_srli_epi32::<16>(halves)),
        }
    }

    /// The scale of sub-block `j` in both words of its row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn scale(&self, j: usize) -> __m512i {
        // Bytes above the lowest of a word are cleared.
        let word = |b: usize| i32::from_le_bytes([b as u8, 0x80, 0x80, 0x80]);
        let (a, b) = (word(j), word(8 + j));
        let control = _mm512_broadcast_i32x4(_mm_setr_epi32(a, a, b, b));
        _mm512_shuffle_epi8(self.scales, control)
    }

    /// The mins of sub-blocks `2 k` and `2 k + 1`, each twice, as 16-bit integers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn mins(&self, k: usize) -> __m512i {
        let word = |b: usize| i32::from_le_bytes([b as u8, 0x80, b as u8, 0x80]);
        let [a, b, c, d] = [2 * k, 2 * k + 1, 8 + 2 * k, 9 + 2 * k].map(word);
        let control = _mm512_broadcast_i32x4(_mm_setr_epi32(a, b, c, d));
        _mm512_shuffle_epi8(self.mins, control)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn sum_of_mins(&self, x: &BlockQ8K) -> __m512i {
        let mut sum = _mm512_setzero_si512();
        for (k, four) in x.bsums.as_chunks::<4>().0.iter().enumerate() {
            let [a, b, c, d] = four.map(|v| v as u16 as u64);
            let four = _mm512_set1_epi64((a | b << 16 | c << 32 | d << 48) as i64);
            sum = _mm512_dpwssd_epi32(sum, self.mins(k), four);
        }
        sum
    }

    /// What eight rows add to the sums of two activations, those of the first one first.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn terms(&self, sums: [__m512i; 2], x: [&BlockQ8K; 2]) -> __m512 {
        let sum = add_neighbours(sums[0], sums[1]);
        let mins = add_neighbours(self.sum_of_mins(x[0]), self.sum_of_mins(x[1]));
        let d8 = _mm512_mask_blend_ps(0xcccc, _mm512_set1_ps(x[0].d), _mm512_set1_ps(x[1].d));
        let value = _mm512_mul_ps(_mm512_mul_ps(d8, self.d), _mm512_cvtepi32_ps(sum));
        let least = _mm512_mul_ps(_mm512_mul_ps(d8, self.dmin), _mm512_cvtepi32_ps(mins));
        let pairs = _mm512_castps_pd(_mm512_sub_ps(value, least));
        let order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
        _mm512_castpd_ps(_mm512_permutexvar_pd(order, pairs))
    }
}
