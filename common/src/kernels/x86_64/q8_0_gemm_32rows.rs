//! GEMM of Q8_0: 32 rows side by side, a row a lane: AVX-512 with VNNI.

use std::arch::x86_64::*;

use super::vectors::{load_f32x16, part, prefetch_lines, store_f32x16, transpose};
use crate::kernels::lanes::LANES;
use crate::kernels::operands::q8_0_blocks::{Lane, LaneSums, ORDER, PackedBlock, Q8_0_ROWS};
use crate::kernels::operands::q8_0_blocks::{TokenGroup, UnpackedBlock};

/// Vectors of rows.
const VECTORS: usize = Q8_0_ROWS / LANES;

/// Bytes of a block.
const BLOCK: usize = 34;

/// Fills `weights`, prefetching as many rows from `ahead`.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn unpack(rows: &[&[u8]; Q8_0_ROWS], ahead: *const u8, weights: &mut [UnpackedBlock]) {
    let blocks = weights.len();
    let rows = rows.map(|row| &row.as_chunks::<BLOCK>().0[..blocks]);
    let raise = _mm512_set1_epi8(-128);
    for (b, block) in weights.iter_mut().enumerate() {
        let ahead = ahead.wrapping_add(b * Q8_0_ROWS * BLOCK);
        for v in 0..VECTORS {
            let rows: &[&[[u8; BLOCK]]; LANES] = part(&rows, v);
            for half in 0..2 {
                // Blocks are not whole lines, so the parts overlap.
                prefetch_lines::<5>(
                    ahead.wrapping_add((2 * v + half) * Q8_0_ROWS * BLOCK / 4),
                    0,
                );
                for (i, words) in words(rows, b, half).into_iter().enumerate() {
                    let raised = _mm512_xor_si512(words, raise);
                    store_words(raised, &mut block.q[v][4 * half + i]);
                }
            }
            let mut bits = [0_u16; LANES];
            for (bits, row) in bits.iter_mut().zip(rows) {
                *bits = u16::from_le_bytes([row[b][0], row[b][1]]);
            }
            // SAFETY: the reference is valid for 32 bytes and the load needs no alignment.
            let bits = unsafe { _mm256_loadu_si256(bits.as_ptr().cast()) };
            store_f32x16(_mm512_cvtph_ps(bits), &mut block.d[v]);
        }
    }
}

/// Weights `16 * half..` of block `b` of every row, as four vectors of one word a row.
#[inline]
#[target_feature(enable = "avx512f")]
fn words(rows: &[&[[u8; BLOCK]]; LANES], b: usize, half: usize) -> [__m512i; 4] {
    let load = |r: usize| {
        let bytes: &[u8; 16] = part(&rows[r][b][2..], half);
        // SAFETY: the reference is valid for 16 bytes, which need no alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    };
    transpose(load)
}

/// `lanes.total()[t][r] = w[r] · x[t]`.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn multiply(weights: &[UnpackedBlock], x: TokenGroup<'_>, lanes: &mut LaneSums) {
    let blocks = weights.len();
    for (i, &lane) in ORDER.iter().enumerate() {
        let mut sums = lanes.lane(i, x.tokens);
        if lane >= blocks {
            sums.empty();
        } else {
            for b in (lane..blocks).step_by(LANES) {
                let block = Block::load(&weights[b]);
                let x = x.of_block(b);
                match (b == lane, b + LANES >= blocks && sums.left.is_some()) {
                    (true, true) => block.add::<true, true>(x, &mut sums),
                    (true, false) => block.add::<true, false>(x, &mut sums),
                    (false, true) => block.add::<false, true>(x, &mut sums),
                    (false, false) => block.add::<false, false>(x, &mut sums),
                }
            }
        }
        lanes.join(i, x.tokens);
    }
}

/// A block of every row in registers.
struct Block {
    q: [[__m512i; 8]; VECTORS],
    d: [__m512; VECTORS],
}

impl Block {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(from: &UnpackedBlock) -> Self {
        let mut block = Self {
            q: [[_mm512_setzero_si512(); 8]; VECTORS],
            d: [_mm512_setzero_ps(); VECTORS],
        };
        for v in 0..VECTORS {
            for (q, bytes) in block.q[v].iter_mut().zip(&from.q[v]) {
                *q = load_words(bytes);
            }
            block.d[v] = load_f32x16(&from.d[v]);
        }
        block
    }

    /// `own[t][r] += (d[r] * x[t].d) * (q[r] · x[t].q)`, from zero for a lane's first block; the
    /// last one adds the result to the sums on the left instead.
    #[inline]
    #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn add<const FIRST: bool, const LAST: bool>(&self, x: &[PackedBlock], lane: &mut Lane<'_>) {
        let left = lane.left.as_deref_mut().unwrap_or(&mut []);
        let tokens = x.len();
        let left = &mut left[..if LAST { tokens } else { 0 }];
        let own = &mut lane.own[..tokens];
        for t in 0..tokens {
            let terms = self.terms(&x[t]);
            for (v, term) in terms.iter().enumerate() {
                let own = &mut own[t].as_chunks_mut::<LANES>().0[v];
                let old = if FIRST {
                    _mm512_setzero_ps()
                } else {
                    load_f32x16(own)
                };
                let sum = _mm512_add_ps(old, *term);
                if LAST {
                    let left = &mut left[t].as_chunks_mut::<LANES>().0[v];
                    store_f32x16(_mm512_add_ps(load_f32x16(left), sum), left);
                } else {
                    store_f32x16(sum, own);
                }
            }
        }
    }

    /// `(d[r] * x.d) * (q[r] · x.q)`.
    ///
    /// The instruction multiplies unsigned by signed bytes, so it gets the weight plus 128; the
    /// sum starts at what this adds, taken away. Exact for every byte: `255 * 128 * 32 < 2^31`.
    #[inline]
    #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn terms(&self, x: &PackedBlock) -> [__m512; VECTORS] {
        // Two sums a vector, since each step of a sum waits for the one before.
        let mut dots = [
            [_mm512_set1_epi32(x.offset); VECTORS],
            [_mm512_setzero_si512(); VECTORS],
        ];
        for i in 0..8 {
            let four = part::<i8, 4>(&x.q, i).map(|v| v as u8);
            let four = _mm512_set1_epi32(i32::from_le_bytes(four));
            for (dot, q) in dots[i % 2].iter_mut().zip(&self.q) {
                *dot = _mm512_dpbusd_epi32(*dot, q[i], four);
            }
        }
        let d = _mm512_set1_ps(x.d);
        let mut terms = self.d;
        for v in 0..VECTORS {
            let dot = _mm512_add_epi32(dots[0][v], dots[1][v]);
            terms[v] = _mm512_mul_ps(_mm512_mul_ps(self.d[v], d), _mm512_cvtepi32_ps(dot));
        }
        terms
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_words(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the reference is valid for 64 bytes and the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_words(words: __m512i, to: &mut [u8; 64]) {
    // SAFETY: the reference is valid for 64 bytes and the store needs no alignment.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), words) };
}
