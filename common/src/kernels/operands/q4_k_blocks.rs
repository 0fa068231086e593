//! Blocks of Q4_K rows and of the activations that they are multiplied with.

use super::Matrix;
use crate::quant::BlockQ8K;

/// Rows of the widest loops, a row a lane, and of a stored panel.
pub(in crate::kernels) const Q4_K_ROWS: usize = 16;

/// What each of sixteen rows adds to the sums of one activation.
pub(in crate::kernels) type Q4KRowSums = [f32; Q4_K_ROWS];

/// One block of each of `N` rows.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct BlockRows<'a, const N: usize> {
    /// Block of the first row; there is a whole block at each of the `N` multiples of `stride`.
    start: &'a [u8; 144],
    stride: usize,
}

impl<'a, const N: usize> BlockRows<'a, N> {
    /// Block `block` of the rows `first..first + N`.
    ///
    /// # Panics
    /// `w` does not have them.
    pub(in crate::kernels) fn new(w: &Matrix<'a>, first: usize, block: usize) -> Self {
        let (start, stride) = w.blocks_below::<144>(first, N, block);
        Self { start, stride }
    }

    /// The block of row `r`.
    ///
    /// # Panics
    /// `r` is not below `N`.
    #[inline(always)]
    pub(in crate::kernels) fn row(&self, r: usize) -> &'a [u8; 144] {
        assert!(r < N, "row {r} of {N}");
        // SAFETY: `r < N`, and `new` has checked that there is a block at `r * stride`.
        unsafe { &*self.start.as_ptr().add(r * self.stride).cast() }
    }

    /// The blocks of all rows.
    pub(in crate::kernels) fn all(&self) -> [&'a [u8; 144]; N] {
        std::array::from_fn(|r| self.row(r))
    }
}

/// Four blocks of an activation, laid out for a GEMV over four blocks of a row.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "for vector kernels")
)]
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(in crate::kernels) struct FourBlocks {
    /// Of block `i`, its sub-blocks (0, 2), (1, 3), (4, 6) and (5, 7) at `4 i`: 64 bytes of
    /// weights hold the first two pairs, in low and high nibbles.
    pub(in crate::kernels) q: [[[i8; 32]; 2]; 16],
    /// The first eight sums of each block, then the last eight of each.
    pub(in crate::kernels) bsums: [[[i16; 8]; 4]; 2],
    pub(in crate::kernels) d: [f32; 4],
}

impl FourBlocks {
    const ZERO: Self = Self {
        q: [[[0; 32]; 2]; 16],
        bsums: [[[0; 8]; 4]; 2],
        d: [0.0; 4],
    };

    /// Lays out the whole fours of `x`.
    pub(in crate::kernels) fn lay_out(x: &[&BlockQ8K], out: &mut Vec<Self>) {
        out.clear();
        for four in x.as_chunks::<4>().0 {
            let mut laid_out = Self::ZERO;
            for (i, x) in four.iter().enumerate() {
                laid_out.set(i, x);
            }
            out.push(laid_out);
        }
    }

    fn set(&mut self, i: usize, x: &BlockQ8K) {
        let q = x.q.as_chunks::<32>().0;
        for (v, first) in [0, 1, 4, 5].into_iter().enumerate() {
            self.q[4 * i + v] = [q[first], q[first + 2]];
        }
        for (sums, part) in self.bsums.iter_mut().zip(x.bsums.as_chunks::<8>().0) {
            sums[i] = *part;
        }
        self.d[i] = x.d;
    }
}

/// Where the results of a panel's rows go, block by block.
pub(in crate::kernels) struct PanelResults<'a> {
    /// From the first result of the first activation on.
    pub(in crate::kernels) out: &'a mut [f32],
    /// From an activation to the next.
    pub(in crate::kernels) of_token: usize,
    /// From a block to the next; 0 where blocks are added up.
    pub(in crate::kernels) of_block: usize,
    /// The block that is being computed.
    pub(in crate::kernels) block: usize,
}

impl PanelResults<'_> {
    /// The results of activation `t`.
    ///
    /// # Panics
    /// There is no place for them.
    #[inline(always)]
    pub(in crate::kernels) fn of(&mut self, t: usize) -> &mut Q4KRowSums {
        let at = t * self.of_token + self.block * self.of_block;
        &mut self.out[at..at + Q4_K_ROWS].as_chunks_mut().0[0]
    }
}
