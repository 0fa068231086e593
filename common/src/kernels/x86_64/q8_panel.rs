//! Rows of Q8_0 side by side, a row a lane: AVX-512 with VNNI.

use std::arch::x86_64::*;

use super::q8_lone::request;
use super::{load_f32x16, part, store_f32x16};
use crate::kernels::lanes::LANES;
use crate::kernels::q8_panel::{Group, Lane, MAX_ROWS, ORDER, PackedBlock, Waiting};

/// Vectors of rows.
const VECTORS: usize = MAX_ROWS / LANES;

/// `waiting.total()[t][r] = w[r] · x[t]`, while a panel's worth of bytes is asked for at
/// `ahead`.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn q8_panel(
    w: &[&[u8]; MAX_ROWS],
    x: Group<'_>,
    ahead: *const u8,
    waiting: &mut Waiting,
) {
    let rows = w.map(|row| row.as_chunks::<34>().0);
    let blocks = rows[0].len();
    let mut step = 0;
    for (i, &lane) in ORDER.iter().enumerate() {
        let mut sums = waiting.lane(i, x.tokens);
        if lane >= blocks {
            sums.empty();
        } else {
            for b in (lane..blocks).step_by(LANES) {
                let ahead = ahead.wrapping_add(step * MAX_ROWS * 34);
                step += 1;
                let block = Block::unpack(std::array::from_fn(|r| &rows[r][b]), ahead);
                let x = x.of_block(b);
                match (b == lane, b + LANES >= blocks && sums.left.is_some()) {
                    (true, true) => block.add::<true, true>(x, &mut sums),
                    (true, false) => block.add::<true, false>(x, &mut sums),
                    (false, true) => block.add::<false, true>(x, &mut sums),
                    (false, false) => block.add::<false, false>(x, &mut sums),
                }
            }
        }
        waiting.join(i, x.tokens);
    }
}

/// A block of every row in registers.
struct Block {
    /// Four weights of every row a vector, raised by 128.
    q: [[__m512i; 8]; VECTORS],
    d: [__m512; VECTORS],
}

impl Block {
    #[inline]
    #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn unpack(w: [&[u8; 34]; MAX_ROWS], ahead: *const u8) -> Self {
        let mut block = Self {
            q: [[_mm512_setzero_si512(); 8]; VECTORS],
            d: [_mm512_setzero_ps(); VECTORS],
        };
        let raise = _mm512_set1_epi8(-128);
        for v in 0..VECTORS {
            let w: &[&[u8; 34]; LANES] = part(&w, v);
            for half in 0..2 {
                // A line more than the last quarter needs, since blocks are no whole lines.
                request::<5>(ahead.wrapping_add((2 * v + half) * 8 * 34));
                for (i, words) in words(w, half).into_iter().enumerate() {
                    block.q[v][4 * half + i] = _mm512_xor_si512(words, raise);
                }
            }
            let mut bits = [0_u16; LANES];
            for (bits, bytes) in bits.iter_mut().zip(w) {
                *bits = u16::from_le_bytes([bytes[0], bytes[1]]);
            }
            // SAFETY: the reference is valid for 32 bytes and the load needs no alignment.
            let bits = unsafe { _mm256_loadu_si256(bits.as_ptr().cast()) };
            block.d[v] = _mm512_cvtph_ps(bits);
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
        let (own, left) = (
            &mut lane.own[..tokens],
            &mut left[..if LAST { tokens } else { 0 }],
        );
        for t in 0..tokens {
            let terms = self.terms(&x[t]);
            for v in 0..VECTORS {
                let own = &mut own[t].as_chunks_mut::<LANES>().0[v];
                let old = if FIRST {
                    _mm512_setzero_ps()
                } else {
                    load_f32x16(own)
                };
                let sum = _mm512_add_ps(old, terms[v]);
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
        let mut dots = [_mm512_set1_epi32(x.offset); VECTORS];
        for i in 0..8 {
            let four = part::<i8, 4>(&x.q, i).map(|v| v as u8);
            let four = _mm512_set1_epi32(i32::from_le_bytes(four));
            for v in 0..VECTORS {
                dots[v] = _mm512_dpbusd_epi32(dots[v], self.q[v][i], four);
            }
        }
        let d = _mm512_set1_ps(x.d);
        let mut terms = self.d;
        for (term, dot) in terms.iter_mut().zip(dots) {
            *term = _mm512_mul_ps(_mm512_mul_ps(*term, d), _mm512_cvtepi32_ps(dot));
        }
        terms
    }
}

/// Weights `16 * half..` of every row, as four vectors of one word a row.
#[inline]
#[target_feature(enable = "avx512f")]
fn words(w: &[&[u8; 34]; LANES], half: usize) -> [__m512i; 4] {
    let load = |r: usize| {
        let bytes: &[u8; 16] = part(&w[r][2..], half);
        // SAFETY: the reference is valid for 16 bytes, which need no alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    };
    super::sixteen::transpose(load)
}
