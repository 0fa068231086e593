//! Rows of Q8_0 side by side, a row a lane: AVX-512 with VNNI.

use std::arch::x86_64::*;

use super::part;
use crate::kernels::lanes::LANES;
use crate::kernels::q8_panel::{Group, MAX_ROWS, ORDER, PackedBlock, Sums, Waiting};

/// Vectors of rows.
const VECTORS: usize = MAX_ROWS / LANES;

/// `waiting.total()[t][r] = w[r] · x[t]`; `ahead` is called once a block.
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn q8_panel(
    w: &[&[u8]; MAX_ROWS],
    x: Group<'_>,
    mut ahead: impl FnMut(usize),
    waiting: &mut Waiting,
) {
    let rows = w.map(|row| row.as_chunks::<34>().0);
    let blocks = rows[0].len();
    let mut step = 0;
    for (i, &lane) in ORDER.iter().enumerate() {
        let sums = waiting.lane(i, x.tokens);
        for b in (lane..blocks).step_by(LANES) {
            ahead(step);
            step += 1;
            let block = Block::unpack(std::array::from_fn(|r| &rows[r][b]));
            block.add(x.of_block(b), sums);
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
    fn unpack(w: [&[u8; 34]; MAX_ROWS]) -> Self {
        let mut block = Self {
            q: [[_mm512_setzero_si512(); 8]; VECTORS],
            d: [_mm512_setzero_ps(); VECTORS],
        };
        let raise = _mm512_set1_epi8(-128);
        for v in 0..VECTORS {
            let w: &[&[u8; 34]; LANES] = part(&w, v);
            for half in 0..2 {
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

    /// `sums[t][r] += (d[r] * x[t].d) * (q[r] · x[t].q)`.
    ///
    /// The instruction multiplies unsigned by signed bytes, so it gets the weight plus 128; the
    /// sum starts at what this adds, taken away. Exact for every byte: `255 * 128 * 32 < 2^31`.
    #[inline]
    #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn add(&self, x: &[PackedBlock], sums: &mut [Sums]) {
        for (x, sums) in x.iter().zip(sums) {
            let mut dots = [_mm512_set1_epi32(x.offset); VECTORS];
            for i in 0..8 {
                let four = part::<i8, 4>(&x.q, i).map(|v| v as u8);
                let four = _mm512_set1_epi32(i32::from_le_bytes(four));
                for v in 0..VECTORS {
                    dots[v] = _mm512_dpbusd_epi32(dots[v], self.q[v][i], four);
                }
            }
            let d = _mm512_set1_ps(x.d);
            for (v, sums) in sums.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                let scale = _mm512_mul_ps(self.d[v], d);
                let term = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(dots[v]));
                // SAFETY: the reference is valid for 16 floats, which need no alignment.
                let old = unsafe { _mm512_loadu_ps(sums.as_ptr()) };
                // SAFETY: the reference is valid for 16 floats, which need no alignment.
                unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_add_ps(old, term)) };
            }
        }
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
