//! GEMM of Q4_K panels: sixteen rows, a row a lane of 32 bits: AVX2 or AVX-VNNI.
//!
//! A panel has two halves of eight rows. Few activations are multiplied with both together; the
//! sums of more would not stay in registers, so the halves come one after the other.

use std::arch::x86_64::*;

use super::byte_products::{ByteProducts, broadcast};
use super::q4_k_gemm_8rows_256::{Scales8, split};
use super::vectors::{part, prefetch_lines, set_of};
use crate::kernels::operands::q4_k_blocks::PanelResults;
use crate::quant::{BlockQ8K, PanelBlock};

/// Activations of a set, at most.
const TOKENS: usize = 4;

/// Activations of a set that is multiplied with both halves together, at most.
const BOTH: usize = 2;

/// A panel times activations; see [`crate::kernels::instruction_set::InstructionSet::q4_k_panel_gemm`].
///
/// # Safety
/// The CPU has the instructions of `S`.
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn q4_k_panel_gemm<S: ByteProducts, const FRESH: bool>(
    panel: &[PanelBlock],
    xs: &[&BlockQ8K],
    ahead: impl Fn(usize) -> *const u8,
    out: &mut PanelResults<'_>,
) {
    let tokens = xs.len().checked_div(panel.len()).unwrap_or(0);
    for (b, (block, xs)) in panel.iter().zip(xs.chunks(tokens.max(1))).enumerate() {
        out.block = b;
        let mut set = Set {
            w: block,
            half: 0,
            ahead: Some(ahead(b)),
            first: 0,
        };
        for xs in xs.chunks(set_of(tokens, TOKENS)) {
            // SAFETY: the caller promises the CPU.
            unsafe {
                match xs.len() {
                    1 => set.add::<S, FRESH, 1, 2>(xs, out),
                    BOTH => set.add::<S, FRESH, BOTH, 2>(xs, out),
                    3 => set.add_halves::<S, FRESH, 3>(xs, out),
                    _ => set.add_halves::<S, FRESH, TOKENS>(xs, out),
                }
            }
            // The first set has prefetched already.
            set.ahead = None;
            set.first += xs.len();
        }
    }
}

/// Activations that are multiplied with a block together.
#[derive(Clone, Copy)]
struct Set<'a> {
    w: &'a PanelBlock,
    /// The first half that they are multiplied with.
    half: usize,
    ahead: Option<*const u8>,
    /// Which activation is the set's first.
    first: usize,
}

impl Set<'_> {
    /// # Safety
    /// The CPU has the instructions of `S`.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn add_halves<S: ByteProducts, const FRESH: bool, const T: usize>(
        self,
        xs: &[&BlockQ8K],
        out: &mut PanelResults<'_>,
    ) {
        let second = Set {
            half: 1,
            ahead: None,
            ..self
        };
        // SAFETY: the caller promises the CPU.
        unsafe {
            self.add::<S, FRESH, T, 1>(xs, out);
            second.add::<S, FRESH, T, 1>(xs, out);
        }
    }

    /// Exactly `T` activations and `H` halves.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn add<S: ByteProducts, const FRESH: bool, const T: usize, const H: usize>(
        self,
        xs: &[&BlockQ8K],
        out: &mut PanelResults<'_>,
    ) {
        let Some(xs) = xs.first_chunk::<T>() else {
            return;
        };
        let prefetch = |line: usize| {
            if let Some(ahead) = self.ahead {
                // Full queues may drop the first.
                prefetch_lines::<1>(ahead, line);
                prefetch_lines::<1>(ahead, line);
            }
        };
        let words = |line: usize, h: usize| load(&self.w[line], self.half + h);
        let scales: [Scales8; H] =
            std::array::from_fn(|h| Scales8::new(std::array::from_fn(|line| words(line, h))));
        let mut sums = [[_mm256_setzero_si256(); H]; T];
        for p in 0..4 {
            for run in 0..8 / S::RUN {
                let mut products = [[[_mm256_setzero_si256(); 2]; H]; T];
                for i in S::RUN * run..S::RUN * (run + 1) {
                    let line = 4 + 8 * p + i;
                    let q: [[__m256i; 2]; H] = std::array::from_fn(|h| split(words(line, h)));
                    for (x, products) in xs.iter().zip(&mut products) {
                        for n in 0..2 {
                            let x: &[i8; 4] = part(&x.q, 8 * (2 * p + n) + i);
                            let x = broadcast(*x);
                            for (q, products) in q.iter().zip(products.iter_mut()) {
                                // SAFETY: the caller promises the CPU.
                                products[n] = unsafe { S::multiply(products[n], q[n], x) };
                            }
                        }
                    }
                    prefetch(line);
                }
                for (h, scales) in scales.iter().enumerate() {
                    for n in 0..2 {
                        let scale = scales.scale::<S>(2 * p + n);
                        for (sums, products) in sums.iter_mut().zip(&products) {
                            // SAFETY: the caller promises the CPU.
                            sums[h] = unsafe { S::add_scaled(sums[h], products[h][n], scale) };
                        }
                    }
                }
            }
        }
        (0..4).for_each(prefetch);
        for (h, scales) in scales.iter().enumerate() {
            let mins = scales.all_mins();
            for (t, (sums, x)) in sums.iter().zip(xs).enumerate() {
                let out: &mut [f32; 8] =
                    &mut out.of(self.first + t).as_chunks_mut().0[self.half + h];
                if FRESH {
                    *out = [0.0; 8];
                }
                scales.add_terms(sums[h], &mins, x, out);
            }
        }
    }
}

/// A word of each row of a half.
#[inline]
#[target_feature(enable = "avx2")]
fn load(words: &[[u8; 4]; 16], half: usize) -> __m256i {
    let words: &[[u8; 4]; 8] = part(words, half);
    // SAFETY: the reference is valid for 32 bytes, which need no alignment.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}
