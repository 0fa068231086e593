//! GEMM of Q4_K: one block of each of sixteen rows, two rows and two activations an instruction.

use std::arch::aarch64::*;

use super::byte_dots::Dot;
use super::super_blocks::{Codes, Q4KScales, term, unpack_q4_k};
use super::vectors::{load_f32, load_i8, load_u8, part, split, store_f32, words};
use crate::kernels::operands::q4_k_blocks::{Q4_K_ROWS, Q4KRowSums};
use crate::quant::{BlockQ8K, PanelBlock, Q4K};

const PAIRS: usize = Q4_K_ROWS / 2;

/// Eight sub-blocks of two rows, or of two activations: four vectors of 32 columns, each of eight
/// columns of the first and the same of the second.
type Woven = [[int8x16_t; 4]; 8];

/// `out[t][r] += w[r] · xs[t]`.
///
/// # Safety
/// [`Dot::detected`] and [`Dot::MATRIX`] are true.
#[target_feature(enable = "neon")]
pub(super) unsafe fn q4_k_gemm_16rows<D: Dot>(
    w: [&[u8; 144]; Q4_K_ROWS],
    xs: &[&BlockQ8K],
    out: &mut [Q4KRowSums],
) {
    if let ([x], [out]) = (xs, &mut *out) {
        let mut codes = Codes::zero();
        for (bytes, out) in w.into_iter().zip(out) {
            unpack_q4_k(bytes, &mut codes);
            // SAFETY: the caller promises the CPU.
            *out += unsafe { term::<D, Q4K>(&codes, x) };
        }
        return;
    }
    let rows = WovenRows::new(w);
    let (pairs, last) = xs.as_chunks::<2>();
    let (out_pairs, out_last) = out.as_chunks_mut::<2>();
    for (x, [first, second]) in pairs.iter().zip(out_pairs) {
        // SAFETY: the caller promises the CPU.
        let sums = unsafe { rows.sums::<D>(*x) };
        rows.add_terms(&sums[0], x[0], first);
        rows.add_terms(&sums[1], x[1], second);
    }
    if let ([x], [out]) = (last, out_last) {
        // SAFETY: the caller promises the CPU.
        let sums = unsafe { rows.sums::<D>([x, x]) };
        rows.add_terms(&sums[0], x, out);
    }
}

/// Sixteen unpacked blocks.
pub(super) struct WovenRows {
    q: [Woven; PAIRS],
    /// For each pair and sub-block the first row's scale twice, then the second one's.
    scales: [[int32x4_t; 8]; PAIRS],
    /// For each sub-block the mins of the rows, in fours.
    mins: [[int32x4_t; 4]; 8],
    d: [f32; Q4_K_ROWS],
    dmin: [f32; Q4_K_ROWS],
}

impl WovenRows {
    #[inline]
    #[target_feature(enable = "neon")]
    fn new(w: [&[u8; 144]; Q4_K_ROWS]) -> Self {
        let mut rows = Self::of_heads(&w.map(Q4KScales::new));
        for (i, q) in rows.q.iter_mut().enumerate() {
            weave_rows(w[2 * i], w[2 * i + 1], q);
        }
        rows
    }

    /// The rows of a panel.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn of_panel(block: &PanelBlock) -> Self {
        let heads: [Q4KScales; Q4_K_ROWS] = std::array::from_fn(|r| {
            let mut bytes = [0; 144];
            for (word, of_rows) in bytes.as_chunks_mut().0.iter_mut().zip(&block[..4]) {
                *word = of_rows[r];
            }
            Q4KScales::new(&bytes)
        });
        let mut rows = Self::of_heads(&heads);
        let fours = rows.q.as_chunks_mut::<2>().0.iter_mut().enumerate();
        for (four, [first, second]) in fours {
            for p in 0..4 {
                for v in 0..4 {
                    let at = 4 + 8 * p + 2 * v;
                    let (a, b) = (words(block, at, four), words(block, at + 1, four));
                    let (a, b) = (vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b));
                    // Eight columns of a row follow each other.
                    let low = vreinterpretq_u8_u32(vzip1q_u32(a, b));
                    let high = vreinterpretq_u8_u32(vzip2q_u32(a, b));
                    [first[2 * p][v], first[2 * p + 1][v]] = split(low);
                    [second[2 * p][v], second[2 * p + 1][v]] = split(high);
                }
            }
        }
        rows
    }

    /// All but the weights.
    #[inline]
    #[target_feature(enable = "neon")]
    fn of_heads(heads: &[Q4KScales; Q4_K_ROWS]) -> Self {
        let scales = heads.each_ref().map(|head| head.scales.to_le_bytes());
        let mins = heads.each_ref().map(|head| head.mins.to_le_bytes());
        let mut rows = Self {
            q: [[[vdupq_n_s8(0); 4]; 8]; PAIRS],
            scales: [[vdupq_n_s32(0); 8]; PAIRS],
            mins: [[vdupq_n_s32(0); 4]; 8],
            d: heads.each_ref().map(|head| head.d),
            dmin: heads.each_ref().map(|head| head.dmin),
        };
        for j in 0..8 {
            for (i, to) in rows.scales.iter_mut().enumerate() {
                let (a, b) = (scales[2 * i][j].into(), scales[2 * i + 1][j].into());
                to[j] = vcombine_s32(vdup_n_s32(a), vdup_n_s32(b));
            }
            for (four, to) in rows.mins[j].iter_mut().enumerate() {
                let min: [i32; 4] = std::array::from_fn(|i| mins[4 * four + i][j].into());
                // SAFETY: the array is valid for four integers.
                *to = unsafe { vld1q_s32(min.as_ptr()) };
            }
        }
        rows
    }

    /// The scaled integer sums of two activations, each in fours of rows.
    ///
    /// # Safety
    /// [`Dot::detected`] and [`Dot::MATRIX`] are true.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn sums<D: Dot>(
        &self,
        [first, second]: [&BlockQ8K; 2],
    ) -> [[int32x4_t; 4]; 2] {
        let mut totals = [vdupq_n_s32(0); PAIRS];
        for j in 0..8 {
            let x = weave_activations(part(&first.q, j), part(&second.q, j));
            for ((total, q), scales) in totals.iter_mut().zip(&self.q).zip(&self.scales) {
                let mut sum = vdupq_n_s32(0);
                for (q, x) in q[j].iter().zip(x) {
                    // SAFETY: the caller promises the CPU.
                    sum = unsafe { D::two_by_two(sum, *q, x) };
                }
                *total = vmlaq_s32(*total, sum, scales[j]);
            }
        }
        let mut sums = [[vdupq_n_s32(0); 4]; 2];
        for (four, [a, b]) in totals.as_chunks::<2>().0.iter().enumerate() {
            sums[0][four] = vuzp1q_s32(*a, *b);
            sums[1][four] = vuzp2q_s32(*a, *b);
        }
        sums
    }

    /// Adds what the integer sums of one activation come to.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn add_terms(&self, sums: &[int32x4_t; 4], x: &BlockQ8K, out: &mut Q4KRowSums) {
        let mut mins = [vdupq_n_s32(0); 4];
        for (of_rows, [a, b]) in self.mins.iter().zip(x.bsums.as_chunks::<2>().0) {
            let pair = vdupq_n_s32(i32::from(*a) + i32::from(*b));
            for (to, of_four) in mins.iter_mut().zip(of_rows) {
                *to = vmlaq_s32(*to, *of_four, pair);
            }
        }
        let d8 = vdupq_n_f32(x.d);
        for (four, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let scale = vmulq_f32(d8, load_f32(part(&self.d, four)));
            let value = vmulq_f32(scale, vcvtq_f32_s32(sums[four]));
            let scale = vmulq_f32(d8, load_f32(part(&self.dmin, four)));
            let least = vmulq_f32(scale, vcvtq_f32_s32(mins[four]));
            store_f32(vaddq_f32(load_f32(out), vsubq_f32(value, least)), out);
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn weave_rows(a: &[u8; 144], b: &[u8; 144], to: &mut Woven) {
    for p in 0..4 {
        for half in 0..2 {
            let a = load_u8(part(&a[16..], 2 * p + half));
            let b = load_u8(part(&b[16..], 2 * p + half));
            let four = vdupq_n_u8(15);
            let low = weave(vandq_u8(a, four), vandq_u8(b, four));
            to[2 * p][2 * half..2 * half + 2].copy_from_slice(&low);
            let high = weave(vshrq_n_u8::<4>(a), vshrq_n_u8::<4>(b));
            to[2 * p + 1][2 * half..2 * half + 2].copy_from_slice(&high);
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn weave_activations(a: &[i8; 32], b: &[i8; 32]) -> [int8x16_t; 4] {
    let bytes = |x: &[i8; 32], half| vreinterpretq_u8_s8(load_i8(part(x, half)));
    let [first, second] = weave(bytes(a, 0), bytes(b, 0));
    let [third, fourth] = weave(bytes(a, 1), bytes(b, 1));
    [first, second, third, fourth]
}

/// The lower halves of both, then the upper ones.
#[inline]
#[target_feature(enable = "neon")]
fn weave(a: uint8x16_t, b: uint8x16_t) -> [int8x16_t; 2] {
    let (a, b) = (vreinterpretq_s64_u8(a), vreinterpretq_s64_u8(b));
    [
        vreinterpretq_s8_s64(vzip1q_s64(a, b)),
        vreinterpretq_s8_s64(vzip2q_s64(a, b)),
    ]
}
