//! GEMM of Q4_K panels: sixteen rows, four of them a vector.

use std::arch::aarch64::*;

use super::byte_dots::Dot;
use super::q4_k_gemm_16rows::WovenRows;
use super::vectors::{load_f32, part, split, store_f32, words};
use crate::kernels::operands::q4_k_blocks::{PanelResults, Q4_K_ROWS};
use crate::quant::{BlockQ8K, PanelBlock};

/// Activations that are multiplied with four unpacked rows.
const TOKENS: usize = 8;

/// A panel times activations; see [`crate::kernels::instruction_set::InstructionSet::q4_k_panel_gemm`].
///
/// # Safety
/// [`Dot::detected`] is true.
#[target_feature(enable = "neon")]
pub(super) unsafe fn q4_k_panel_gemm<D: Dot, const FRESH: bool>(
    panel: &[PanelBlock],
    xs: &[&BlockQ8K],
    prefetch: impl Fn(usize),
    out: &mut PanelResults<'_>,
) {
    let tokens = xs.len().checked_div(panel.len()).unwrap_or(0);
    for (b, (block, xs)) in panel.iter().zip(xs.chunks(tokens.max(1))).enumerate() {
        prefetch(b);
        out.block = b;
        if FRESH {
            (0..tokens).for_each(|t| *out.of(t) = [0.0; Q4_K_ROWS]);
        }
        if D::MATRIX && tokens > 1 {
            let rows = WovenRows::of_panel(block);
            let (pairs, last) = xs.as_chunks::<2>();
            for (i, x) in pairs.iter().enumerate() {
                // SAFETY: the caller promises the CPU.
                let sums = unsafe { rows.sums::<D>(*x) };
                rows.add_terms(&sums[0], x[0], out.of(2 * i));
                rows.add_terms(&sums[1], x[1], out.of(2 * i + 1));
            }
            if let [x] = last {
                // SAFETY: the caller promises the CPU.
                let sums = unsafe { rows.sums::<D>([x, x]) };
                rows.add_terms(&sums[0], x, out.of(tokens - 1));
            }
            continue;
        }
        for four in 0..Q4_K_ROWS / 4 {
            for (i, xs) in xs.chunks(TOKENS).enumerate() {
                // SAFETY: the caller promises the CPU.
                unsafe { add_four::<D>(block, four, xs, TOKENS * i, out) };
            }
        }
    }
}

/// Four rows and up to [`TOKENS`] activations, those from `first` on.
///
/// # Safety
/// [`Dot::detected`] is true.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_four<D: Dot>(
    block: &PanelBlock,
    four: usize,
    xs: &[&BlockQ8K],
    first: usize,
    out: &mut PanelResults<'_>,
) {
    let head = PanelScales::new(block, four);
    let mut sums = [vdupq_n_s32(0); TOKENS];
    let mut mins = [vdupq_n_s32(0); TOKENS];
    for p in 0..4 {
        let mut q = [[vdupq_n_s8(0); 8]; 2];
        for i in 0..8 {
            [q[0][i], q[1][i]] = split(words(block, 4 + 8 * p + i, four));
        }
        for (n, q) in q.iter().enumerate() {
            let j = 2 * p + n;
            let (scale, min) = (byte(&head.scales, j), byte(&head.mins, j));
            for ((sum, least), x) in sums.iter_mut().zip(&mut mins).zip(xs) {
                let columns: &[i8; 32] = part(&x.q, j);
                let mut products = vdupq_n_s32(0);
                for (q, x) in q.iter().zip(columns.as_chunks::<4>().0) {
                    let x = vdupq_n_s32(i32::from_le_bytes(x.map(|v| v as u8)));
                    // SAFETY: the caller promises the CPU.
                    products = unsafe { D::fours(products, *q, vreinterpretq_s8_s32(x)) };
                }
                *sum = vmlaq_s32(*sum, products, scale);
                let [a, b] = part::<_, 2>(&x.bsums, j).map(i32::from);
                *least = vmlaq_n_s32(*least, min, a + b);
            }
        }
    }
    for (t, x) in xs.iter().enumerate() {
        let d8 = vdupq_n_f32(x.d);
        let value = vmulq_f32(vmulq_f32(d8, head.d), vcvtq_f32_s32(sums[t]));
        let least = vmulq_f32(vmulq_f32(d8, head.dmin), vcvtq_f32_s32(mins[t]));
        let out = &mut out.of(first + t).as_chunks_mut::<4>().0[four];
        store_f32(vaddq_f32(load_f32(out), vsubq_f32(value, least)), out);
    }
}

/// The scales of four rows.
struct PanelScales {
    /// Sub-blocks 0..4, and 4..8, one a byte.
    scales: [uint32x4_t; 2],
    mins: [uint32x4_t; 2],
    d: float32x4_t,
    dmin: float32x4_t,
}

impl PanelScales {
    #[inline]
    #[target_feature(enable = "neon")]
    fn new(block: &PanelBlock, four: usize) -> Self {
        let (scales, mins) = (words(block, 1, four), words(block, 2, four));
        let rest = words(block, 3, four);
        let (six, top) = (vdupq_n_u8(0x3f), vdupq_n_u8(0x30));
        let upper = |v| vandq_u8(vshrq_n_u8::<2>(v), top);
        let low = vandq_u8(rest, vdupq_n_u8(15));
        let high = vshrq_n_u8::<4>(rest);
        let halves = |at: usize| {
            let of_row = |r: usize| {
                let [a, b] = *part::<_, 2>(&block[0][4 * four + r], at);
                half::f16::from_le_bytes([a, b]).to_f32()
            };
            load_f32(&[of_row(0), of_row(1), of_row(2), of_row(3)])
        };
        Self {
            scales: [vandq_u8(scales, six), vorrq_u8(low, upper(scales))]
                .map(|v| vreinterpretq_u32_u8(v)),
            mins: [vandq_u8(mins, six), vorrq_u8(high, upper(mins))]
                .map(|v| vreinterpretq_u32_u8(v)),
            d: halves(0),
            dmin: halves(1),
        }
    }
}

/// Byte `j % 4` of every word of the half that has sub-block `j`.
#[inline]
#[target_feature(enable = "neon")]
fn byte(halves: &[uint32x4_t; 2], j: usize) -> int32x4_t {
    let shift = vdupq_n_s32(-8 * (j % 4) as i32);
    let bytes = vandq_u32(vshlq_u32(halves[j / 4], shift), vdupq_n_u32(255));
    vreinterpretq_s32_u32(bytes)
}
