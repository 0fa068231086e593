//! GEMM of Q4_K: one block of each of sixteen rows, a row a lane: AVX-512 with VNNI.

use std::arch::x86_64::*;

use super::vectors::{load_f32x16, part, prefetch_lines, store_f32x16, transpose};
use crate::kernels::operands::q4_k_blocks::{BlockRows, Q4KRowSums};
use crate::quant::BlockQ8K;

/// Activations that are multiplied with rows as these are unpacked.
const MANY: usize = 64;

/// `out[t][r] += w[r] · xs[t]`.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn q4_k_gemm_16rows(
    w: BlockRows<'_, 16>,
    xs: &[&BlockQ8K],
    ascales: *const u8,
    out: &mut [Q4KRowSums],
) {
    for (xs, out) in xs.chunks(MANY).zip(out.chunks_mut(MANY)) {
        // Clearing the sums of absent tokens would cost more than a few tokens' products.
        match xs.len() {
            0..=4 => add_many::<4>(w, xs, ascales, out),
            5..=16 => add_many::<16>(w, xs, ascales, out),
            17..=32 => add_many::<32>(w, xs, ascales, out),
            _ => add_many::<MANY>(w, xs, ascales, out),
        }
    }
}

/// Up to `T` activations, whose sums are in memory: unpacking is so dear that it is done once.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn add_many<const T: usize>(
    w: BlockRows<'_, 16>,
    xs: &[&BlockQ8K],
    ascales: *const u8,
    out: &mut [Q4KRowSums],
) {
    let rows = Scales::new(words(&w, 0));
    prefetch_lines::<4>(ascales, 0);
    let mut sums = [_mm512_setzero_si512(); T];
    for p in 0..4 {
        let q = nibbles(&w, p);
        prefetch_lines::<8>(ascales, 4 + 8 * p);
        let scales = [rows.scale(2 * p), rows.scale(2 * p + 1)];
        for (sum, x) in sums.iter_mut().zip(xs) {
            *sum = add_pair(*sum, &q, scales, part(&x.q, p));
        }
    }
    let mins = rows.all_mins();
    for ((sum, x), out) in sums.iter().zip(xs).zip(out) {
        rows.add_terms(*sum, &mins, x, out);
    }
}

/// 16 bytes at `16 * at` of every row, as four vectors of one word a row.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn words(w: &BlockRows<'_, 16>, at: usize) -> [__m512i; 4] {
    let load = |r: usize| {
        let bytes: &[u8; 16] = part(w.row(r), at);
        // SAFETY: the reference is valid for 16 bytes, which need no alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    };
    transpose(load)
}

/// Sub-blocks `2 p` and `2 p + 1`, four weights of every row a vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn nibbles(w: &BlockRows<'_, 16>, p: usize) -> [__m512i; 16] {
    let mut q = [_mm512_setzero_si512(); 16];
    for half in 0..2 {
        for (i, packed) in words(w, 1 + 2 * p + half).into_iter().enumerate() {
            let at = 4 * half + i;
            [q[at], q[8 + at]] = split(packed);
        }
    }
    q
}

/// The low and the high nibbles of every byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn split(packed: __m512i) -> [__m512i; 2] {
    let mask = _mm512_set1_epi8(15);
    let high = _mm512_srli_epi16::<4>(packed);
    [_mm512_and_si512(packed, mask), _mm512_and_si512(high, mask)]
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

/// A small number in both halves of every lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn twice(values: __m512i) -> __m512i {
    _mm512_or_si512(values, _mm512_slli_epi32::<16>(values))
}

/// Two numbers in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn two(x: &[i16; 16], i: usize) -> __m512i {
    let [a, b] = part::<_, 2>(x, i).map(|v| u32::from(v as u16));
    _mm512_set1_epi32((a | b << 16) as i32)
}

/// Four bytes in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn four(x: &[i8; 32], i: usize) -> __m512i {
    let bytes: &[i8; 4] = part(x, i);
    _mm512_set1_epi32(i32::from_le_bytes(bytes.map(|v| v as u8)))
}

/// Scales of the blocks.
pub(super) struct Scales {
    /// Sub-blocks 0..4, and 4..8, one a byte.
    scales: [__m512i; 2],
    mins: [__m512i; 2],
    d: __m512,
    dmin: __m512,
}

impl Scales {
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

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn add_terms(&self, sum: __m512i, mins: &[__m512i; 8], x: &BlockQ8K, out: &mut Q4KRowSums) {
        let mut least = _mm512_setzero_si512();
        for (k, min) in mins.iter().enumerate() {
            least = _mm512_dpwssd_epi32(least, *min, two(&x.bsums, k));
        }
        self.add_sums(sum, least, x, out);
    }

    /// The min of each sub-block, in both halves of its lane.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn all_mins(&self) -> [__m512i; 8] {
        let mut mins = [_mm512_setzero_si512(); 8];
        for (j, min) in mins.iter_mut().enumerate() {
            *min = twice(byte(self.mins[j / 4], j % 4));
        }
        mins
    }

    /// What the two integer sums of every row come to.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn terms(&self, sum: __m512i, mins: __m512i, d8: f32) -> __m512 {
        let d8 = _mm512_set1_ps(d8);
        let value = _mm512_mul_ps(_mm512_mul_ps(d8, self.d), _mm512_cvtepi32_ps(sum));
        let least = _mm512_mul_ps(_mm512_mul_ps(d8, self.dmin), _mm512_cvtepi32_ps(mins));
        _mm512_sub_ps(value, least)
    }

    /// Adds what the two integer sums of every row come to.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn add_sums(&self, sum: __m512i, mins: __m512i, x: &BlockQ8K, out: &mut Q4KRowSums) {
        let terms = self.terms(sum, mins, x.d);
        store_f32x16(_mm512_add_ps(load_f32x16(out), terms), out);
    }
}

/// Byte `i` of every word.
#[inline]
#[target_feature(enable = "avx512f")]
fn byte(words: __m512i, i: usize) -> __m512i {
    let shift = _mm_cvtsi32_si128(8 * i as i32);
    _mm512_and_si512(_mm512_srl_epi32(words, shift), _mm512_set1_epi32(255))
}
