//! Rows of Q2_K and IQ2_XXS: codes of few bits, which are unpacked in registers: AVX2.

use std::arch::x86_64::*;

use super::block_terms::{Factors, sum_mins};
use super::vectors::{load_256, part, sum_four_256};
use crate::quant::{BlockQ8K, Iq2Xxs, Q2K, SuperBlock};

/// A block in vectors of 32 weights.
struct Codes {
    /// Unsigned: the weights, or those plus [`RAISE`].
    q: [__m256i; 8],
    /// The scales of both runs of 16, in 16-bit lanes.
    scales: [__m256i; 8],
    /// One min a 16-bit lane.
    mins: __m256i,
    d: f32,
    dmin: f32,
}

impl Codes {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn zero() -> Self {
        let zero = _mm256_setzero_si256();
        Self {
            q: [zero; 8],
            scales: [zero; 8],
            mins: zero,
            d: 0.0,
            dmin: 0.0,
        }
    }
}

/// Makes any weight of these formats unsigned.
const RAISE: i8 = 64;

/// A format that has its own way into vectors.
pub(super) trait TwoBits: SuperBlock {
    /// Whether [`RAISE`] is in the codes.
    const RAISED: bool;

    /// # Safety
    /// The CPU has AVX2 and F16C.
    #[expect(private_interfaces, reason = "only this file calls it")]
    unsafe fn load(bytes: &Self::Bytes, to: &mut Codes);
}

/// `out[t] = row · xs[t]`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn row<F: TwoBits>(row: &[u8], xs: &[&[BlockQ8K]], out: &mut [f32]) {
    out.fill(0.0);
    let mut w = Codes::zero();
    let mut products = TwoBitProducts::zero();
    if let ([x], [out]) = (xs, &mut *out) {
        for (blocks, x) in F::blocks(row).chunks(4).zip(x.chunks(4)) {
            for (i, (bytes, x)) in blocks.iter().zip(x).enumerate() {
                // SAFETY: this function is compiled for AVX2 and F16C.
                unsafe { F::load(bytes, &mut w) };
                products.set::<F>(i, &w, x);
            }
            for term in &products.terms::<F>()[..blocks.len()] {
                *out += term;
            }
        }
        return;
    }
    for (b, bytes) in F::blocks(row).iter().enumerate() {
        // SAFETY: this function is compiled for AVX2 and F16C.
        unsafe { F::load(bytes, &mut w) };
        for (xs, out) in xs.chunks(4).zip(out.chunks_mut(4)) {
            for (i, x) in xs.iter().enumerate() {
                products.set::<F>(i, &w, &x[b]);
            }
            for (out, term) in out.iter_mut().zip(products.terms::<F>()) {
                *out += term;
            }
        }
    }
}

/// Four products of blocks, of which the last ones may be left over from before.
struct TwoBitProducts {
    sums: [__m256i; 4],
    factors: Factors,
}

impl TwoBitProducts {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn zero() -> Self {
        Self {
            sums: [_mm256_setzero_si256(); 4],
            factors: Factors::zero(),
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn set<F: TwoBits>(&mut self, i: usize, w: &Codes, x: &BlockQ8K) {
        self.sums[i] = dot::<F>(w, x);
        let mins = match F::HAS_MINS {
            true => sum_mins(w.mins, x),
            false => _mm256_setzero_si256(),
        };
        self.factors.set(i, x.d, w.d, w.dmin, mins);
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn terms<F: TwoBits>(&self) -> [f32; 4] {
        self.factors.terms::<F>(sum_four_256(&self.sums))
    }
}

/// The integer sum in eight parts.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn dot<F: TwoBits>(w: &Codes, x: &BlockQ8K) -> __m256i {
    let mut sum = _mm256_setzero_si256();
    for j in 0..8 {
        let x = load_256(part(&x.q, j));
        // A pair of products is at most 2 * (RAISE + 43) * 128, which fits in 16 bits.
        let mut pairs = _mm256_maddubs_epi16(w.q[j], x);
        if F::RAISED {
            let raise = _mm256_maddubs_epi16(_mm256_set1_epi8(RAISE), x);
            pairs = _mm256_sub_epi16(pairs, raise);
        }
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, w.scales[j]));
    }
    sum
}

impl TwoBits for Q2K {
    const RAISED: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    #[expect(private_interfaces, reason = "only this file calls it")]
    unsafe fn load(bytes: &[u8; 84], to: &mut Codes) {
        (to.d, to.dmin) = halves([bytes[80], bytes[81], bytes[82], bytes[83]]);
        let head: &[u8; 16] = part(bytes, 0);
        // SAFETY: the reference is valid for 16 bytes, which need no alignment.
        let head = unsafe { _mm_loadu_si128(head.as_ptr().cast()) };
        let nibble = _mm_set1_epi8(15);
        let mins = _mm_and_si128(_mm_srli_epi16::<4>(head), nibble);
        let scales = _mm256_broadcastsi128_si256(_mm_and_si128(head, nibble));
        to.mins = _mm256_cvtepu8_epi16(mins);
        // Takes byte 0 or 1 into every 16-bit lane, with a zero above it.
        let first = _mm256_set_m128i(_mm_set1_epi16(-0x7fff), _mm_set1_epi16(-0x8000));
        let two = _mm256_set1_epi8(3);
        for n in 0..2 {
            let packed = load_256(part::<_, 32>(&bytes[16..], n));
            for t in 0..4 {
                let shift = _mm_cvtsi32_si128(2 * t as i32);
                to.q[4 * n + t] = _mm256_and_si256(_mm256_srl_epi16(packed, shift), two);
            }
        }
        for (j, to) in to.scales.iter_mut().enumerate() {
            let at = _mm256_add_epi16(first, _mm256_set1_epi16(2 * j as i16));
            *to = _mm256_shuffle_epi8(scales, at);
        }
    }
}

impl TwoBits for Iq2Xxs {
    const RAISED: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    #[expect(private_interfaces, reason = "only this file calls it")]
    unsafe fn load(bytes: &[u8; 66], to: &mut Codes) {
        to.d = halves([bytes[0], bytes[1], 0, 0]).0;
        let raise = _mm256_set1_epi8(RAISE);
        let groups = bytes[2..].as_chunks::<8>().0.iter();
        for (group, (q, scales)) in groups.zip(to.q.iter_mut().zip(&mut to.scales)) {
            let (magnitudes, masks, scale) = Iq2Xxs::look_up(group);
            let masks = four_words(masks);
            let signed = _mm256_sub_epi8(_mm256_xor_si256(four_words(magnitudes), masks), masks);
            *q = _mm256_add_epi8(signed, raise);
            *scales = _mm256_set1_epi16(scale);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn four_words(words: [u64; 4]) -> __m256i {
    let [a, b, c, d] = words.map(|word| word as i64);
    _mm256_setr_epi64x(a, b, c, d)
}

/// Two half floats.
#[inline]
#[target_feature(enable = "f16c")]
fn halves(bytes: [u8; 4]) -> (f32, f32) {
    let values = _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from_le_bytes(bytes)));
    (
        _mm_cvtss_f32(values),
        _mm_cvtss_f32(_mm_movehdup_ps(values)),
    )
}
