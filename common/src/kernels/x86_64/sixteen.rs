//! One Q4_K block of each of sixteen rows, a row a lane: AVX-512 with VNNI.

use std::arch::x86_64::*;

use super::{load_f32x16, part, store_f32x16};
use crate::kernels::q4_k::Rows;
use crate::kernels::sixteen::{Places, Sums};
use crate::quant::{BlockQ8K, PanelBlock};

/// Where the blocks of sixteen rows are.
pub(super) trait Sixteen: Copy {
    /// 16 bytes at `16 * at` of every row, as four vectors of one word a row.
    ///
    /// # Safety
    /// The CPU has AVX-512 F.
    unsafe fn words(self, at: usize, ahead: *const u8) -> [__m512i; 4];
}

impl Sixteen for Rows<'_, 16> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn words(self, at: usize, ahead: *const u8) -> [__m512i; 4] {
        request::<4>(ahead, 4 * at);
        let load = |r: usize| {
            let bytes: &[u8; 16] = part(self.row(r), at);
            // SAFETY: the reference is valid for 16 bytes, which need no alignment.
            unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
        };
        transpose(load)
    }
}

impl Sixteen for &PanelBlock {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn words(self, at: usize, ahead: *const u8) -> [__m512i; 4] {
        let four: &[[[u8; 4]; 16]; 4] = part(self, at);
        let mut words = [_mm512_setzero_si512(); 4];
        for (i, (word, from)) in words.iter_mut().zip(four).enumerate() {
            // SAFETY: the reference is valid for 64 bytes, which need no alignment.
            *word = unsafe { _mm512_loadu_si512(from.as_ptr().cast()) };
            request::<1>(ahead, 4 * at + i);
        }
        words
    }
}

/// Calls `$few::<FRESH, T>` for sets of activations, with their number, at most [`TOKENS`], as `T`.
macro_rules! in_sets {
    ($few:ident, $fresh:expr, $block:expr, $xs:expr, $ahead:expr, $out:expr) => {{
        let (set, mut ahead) = (tokens_of_a_set($xs.len()), $ahead);
        for (i, xs) in $xs.chunks(set).enumerate() {
            let t = i * set;
            match xs.len() {
                1 => $few::<$fresh, 1>($block, xs, ahead, t, $out),
                2 => $few::<$fresh, 2>($block, xs, ahead, t, $out),
                3 => $few::<$fresh, 3>($block, xs, ahead, t, $out),
                4 => $few::<$fresh, 4>($block, xs, ahead, t, $out),
                5 => $few::<$fresh, 5>($block, xs, ahead, t, $out),
                6 => $few::<$fresh, 6>($block, xs, ahead, t, $out),
                7 => $few::<$fresh, 7>($block, xs, ahead, t, $out),
                _ => $few::<$fresh, 8>($block, xs, ahead, t, $out),
            }
            // What is ahead is asked for once.
            ahead = $block.as_ptr().cast();
        }
    }};
}
pub(super) use in_sets;

/// Activations whose sums stay in registers.
const TOKENS: usize = 8;

/// Activations that meet rows as they are unpacked.
pub(super) const MANY: usize = 64;

/// Equal sets of at most [`TOKENS`] activations, for so many of them.
pub(super) fn tokens_of_a_set(tokens: usize) -> usize {
    tokens.div_ceil(tokens.div_ceil(TOKENS).max(1)).max(1)
}

/// `out[t][r] += w[r] · xs[t]`.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn q4_k_sixteen(w: Rows<'_, 16>, xs: &[&BlockQ8K], ahead: *const u8, out: &mut [Sums]) {
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

/// Up to `T` activations, whose sums are in memory: unpacking is so dear that it is done once.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn add_many<const T: usize>(
    w: Rows<'_, 16>,
    xs: &[&BlockQ8K],
    ahead: *const u8,
    out: &mut [Sums],
) {
    let head = Head::new(words(w, 0, ahead));
    let mut sums = [_mm512_setzero_si512(); T];
    for p in 0..4 {
        let q = nibbles(w, p, ahead);
        let scales = [head.scale(2 * p), head.scale(2 * p + 1)];
        for (sum, x) in sums.iter_mut().zip(xs) {
            *sum = add_pair(*sum, &q, scales, part(&x.q, p));
        }
    }
    let mins = head.all_mins();
    for ((sum, x), out) in sums.iter().zip(xs).zip(out) {
        head.add_terms(*sum, &mins, x, out);
    }
}

/// A panel times activations; see [`crate::kernels::row::RowKernel::q4_k_panel`].
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn q4_k_panel<const FRESH: bool>(
    panel: &[PanelBlock],
    xs: &[&BlockQ8K],
    ahead: impl Fn(usize) -> *const u8,
    out: &mut Places<'_>,
) {
    let tokens = xs.len().checked_div(panel.len()).unwrap_or(0);
    for (b, (block, xs)) in panel.iter().zip(xs.chunks(tokens.max(1))).enumerate() {
        out.block = b;
        in_sets!(add_few, FRESH, block, xs, ahead(b), out);
    }
}

/// Exactly `T` activations from `first` on, whose sums are in registers.
#[inline]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn add_few<const FRESH: bool, const T: usize>(
    w: &PanelBlock,
    xs: &[&BlockQ8K],
    ahead: *const u8,
    first: usize,
    out: &mut Places<'_>,
) {
    let Some(xs) = xs.first_chunk::<T>() else {
        return;
    };
    let line = |i: usize| {
        // SAFETY: the reference is valid for 64 bytes, which need no alignment.
        unsafe { _mm512_loadu_si512(w[i].as_ptr().cast()) }
    };
    let head = Head::new([line(0), line(1), line(2), line(3)]);
    request::<4>(ahead, 0);
    let mut sums = [_mm512_setzero_si512(); T];
    let mask = _mm512_set1_epi8(15);
    for p in 0..4 {
        let mut q = [[_mm512_setzero_si512(); 8]; 2];
        for i in 0..8 {
            let packed = line(4 + 8 * p + i);
            q[0][i] = _mm512_and_si512(packed, mask);
            q[1][i] = _mm512_and_si512(_mm512_srli_epi16::<4>(packed), mask);
            request::<1>(ahead, 4 + 8 * p + i);
        }
        let scales = [byte(head.scales[p / 2], 2 * (p % 2)), byte(head.scales[p / 2], 2 * (p % 2) + 1)];
        for t in 0..T {
            for n in 0..2 {
                let x: &[i8; 32] = part(&xs[t].q, 2 * p + n);
                let mut a = _mm512_setzero_si512();
                let mut b = a;
                for i in 0..4 {
                    a = _mm512_dpbusd_epi32(a, q[n][i], four(x, i));
                    b = _mm512_dpbusd_epi32(b, q[n][i + 4], four(x, i + 4));
                }
                sums[t] = _mm512_dpwssd_epi32(sums[t], a, scales[n]);
                sums[t] = _mm512_dpwssd_epi32(sums[t], b, scales[n]);
            }
        }
    }
    let mins = head.all_mins();
    for t in 0..T {
        let mut least = _mm512_setzero_si512();
        for (k, min) in mins.iter().enumerate() {
            least = _mm512_dpwssd_epi32(least, *min, two(&xs[t].bsums, k));
        }
        let terms = head.terms(sums[t], least, xs[t].d);
        let out = out.of(first + t);
        let old = if FRESH { _mm512_setzero_ps() } else { load_f32x16(out) };
        store_f32x16(_mm512_add_ps(old, terms), out);
    }
}

/// 16 bytes at `16 * at` of every row, as four vectors of one word a row.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn words(w: impl Sixteen, at: usize, ahead: *const u8) -> [__m512i; 4] {
    // SAFETY: the enabled feature is what the method asks for.
    unsafe { w.words(at, ahead) }
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
pub(super) fn nibbles(w: impl Sixteen, p: usize, ahead: *const u8) -> [__m512i; 16] {
    let mask = _mm512_set1_epi8(15);
    let mut q = [_mm512_setzero_si512(); 16];
    for half in 0..2 {
        for (i, packed) in words(w, 1 + 2 * p + half, ahead).into_iter().enumerate() {
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
    let four = |i: usize| {
        let bytes: &[i8; 4] = part(x, i);
        _mm512_set1_epi32(i32::from_le_bytes(bytes.map(|v| v as u8)))
    };
    let mut all = sum;
    for (j, scale) in scales.into_iter().enumerate() {
        let mut halves = [_mm512_setzero_si512(); 2];
        for i in 8 * j..8 * j + 4 {
            halves[0] = _mm512_dpbusd_epi32(halves[0], q[i], four(i));
            halves[1] = _mm512_dpbusd_epi32(halves[1], q[i + 4], four(i + 4));
        }
        // 16 products are at most 16 * 15 * 128, so the lower half of a lane is its value, and
        // the zero above the scale hides the upper one.
        all = _mm512_dpwssd_epi32(all, halves[0], scale);
        all = _mm512_dpwssd_epi32(all, halves[1], scale);
    }
    all
}

/// Two numbers in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn two(x: &[i16; 16], i: usize) -> __m512i {
    let [a, b] = part::<_, 2>(x, i).map(|v| u32::from(v as u16));
    _mm512_set1_epi32((a | b << 16) as i32)
}

/// Four bytes in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn four(x: &[i8; 32], i: usize) -> __m512i {
    let bytes: &[i8; 4] = part(x, i);
    _mm512_set1_epi32(i32::from_le_bytes(bytes.map(|v| v as u8)))
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
    fn min(&self, j: usize) -> __m512i {
        byte(self.mins[j / 4], j % 4)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn add_terms(&self, sum: __m512i, mins: &[__m512i; 8], x: &BlockQ8K, out: &mut Sums) {
        let mut least = _mm512_setzero_si512();
        for (min, pair) in mins.iter().zip(x.bsums.as_chunks::<2>().0) {
            let pair = u32::from(pair[0] as u16) | u32::from(pair[1] as u16) << 16;
            least = _mm512_dpwssd_epi32(least, *min, _mm512_set1_epi32(pair as i32));
        }
        self.add_sums(sum, least, x, out);
    }

    /// The min of each sub-block, in both halves of its lane.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn all_mins(&self) -> [__m512i; 8] {
        let mut mins = [_mm512_setzero_si512(); 8];
        for (j, twice) in mins.iter_mut().enumerate() {
            let min = self.min(j);
            *twice = _mm512_or_si512(min, _mm512_slli_epi32::<16>(min));
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
    pub(super) fn add_sums(&self, sum: __m512i, mins: __m512i, x: &BlockQ8K, out: &mut Sums) {
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
