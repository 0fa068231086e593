//! Q4_K rows times Q8_K activations, token by token in the output, in the shape that fits the
//! number of activations.
//!
//! - One: row by row, four blocks of a row at a time. Its weights are one stream.
//! - A few: eight rows in lockstep. They and their successors fit into a first-level cache, so
//!   that memory still sees one stream, that of the requests ahead.
//! - More: sixteen rows in lockstep, with the fewest instructions a product.
//!
//! Rows that are stored in panels need one shape only, sixteen rows in lockstep, and are one stream
//! for any number of activations.
//!
//! What is read next is asked for line by line between the products, at the pace at which it is
//! used up: in bursts, requests queue before the loads of the products.

use super::matrix::Matrix;
use super::row::RowKernel;
use super::sixteen::{Places, ROWS};
use super::tile;
use crate::quant::{BlockQ8K, Layout, PANEL_BLOCK};

/// Activations that meet all rows before the next ones do; they stay in a second-level cache.
const TOKENS_AT_ONCE: usize = 64;

/// Bytes between a lone stream of rows and what is asked for.
const STREAM_AHEAD: usize = 6 << 10;

/// Panel blocks between a stream of panels and what is asked for.
const PANEL_BLOCKS_AHEAD: usize = 4;

/// The longest row of block terms that is kept on the stack.
const LONG_ROW: usize = 64;

/// Four blocks of an activation as the products of four blocks of a row meet them.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "for vector kernels")
)]
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Four {
    /// Of block `i`, its sub-blocks (0, 2), (1, 3), (4, 6) and (5, 7) at `4 i`: 64 bytes of
    /// weights hold the first two pairs, in low and high nibbles.
    pub(super) q: [[[i8; 32]; 2]; 16],
    /// The first eight sums of each block, then the last eight of each.
    pub(super) bsums: [[[i16; 8]; 4]; 2],
    pub(super) d: [f32; 4],
}

impl Four {
    const ZERO: Self = Self {
        q: [[[0; 32]; 2]; 16],
        bsums: [[[0; 8]; 4]; 2],
        d: [0.0; 4],
    };

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

/// One block of each of `N` rows.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, const N: usize> {
    /// Block of the first row; there is a whole block at each of the `N` multiples of `stride`.
    start: &'a [u8; 144],
    stride: usize,
}

impl<'a, const N: usize> Rows<'a, N> {
    /// Block `block` of the rows `first..first + N`.
    ///
    /// # Panics
    /// `w` does not have them.
    pub(super) fn new(w: &Matrix<'a>, first: usize, block: usize) -> Self {
        let (start, stride) = w.blocks_below::<144>(first, N, block);
        Rows { start, stride }
    }

    /// The block of row `r`.
    ///
    /// # Panics
    /// `r` is not below `N`.
    #[inline(always)]
    pub(super) fn row(&self, r: usize) -> &'a [u8; 144] {
        assert!(r < N, "row {r} of {N}");
        // SAFETY: `r < N`, and `new` has checked that there is a block at `r * stride`.
        unsafe { &*self.start.as_ptr().add(r * self.stride).cast() }
    }

    pub(super) fn all(&self) -> [&'a [u8; 144]; N] {
        std::array::from_fn(|r| self.row(r))
    }
}

/// Buffers of one thread, kept between calls.
#[derive(Default)]
pub(super) struct Scratch {
    /// Blocks of several activations, side by side as they are met.
    copies: Vec<BlockQ8K>,
    fours: Vec<Four>,
}

/// What a product is made of.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) w: &'a Matrix<'a>,
    /// Activations.
    pub(super) tokens: usize,
    /// What the thread will read after `w`.
    pub(super) then: Option<&'a Matrix<'a>>,
}

impl<'a> Product<'a> {
    fn blocks(&self) -> usize {
        self.w.cols() / 256
    }

    /// Where the result of a row is: blocks apart with `PARTS`, else their sum.
    fn at<const PARTS: bool>(&self, token: usize, block: usize, row: usize) -> usize {
        let line = if PARTS {
            token * self.blocks() + block
        } else {
            token
        };
        line * self.w.rows() + row
    }

    /// Fills `out`, `tokens * rows` results, or `tokens * blocks * rows` with `PARTS`. `xs(b, t)`
    /// is block `b` of activation `t`.
    pub(super) fn run<K: RowKernel, const PARTS: bool>(
        &self,
        k: K,
        xs: impl Fn(usize, usize) -> &'a BlockQ8K,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let blocks = self.blocks();
        if blocks == 0 {
            return out.fill(0.0);
        }
        let Scratch { copies, fours } = scratch;
        for start in (0..self.tokens).step_by(TOKENS_AT_ONCE) {
            let len = TOKENS_AT_ONCE.min(self.tokens - start);
            let block = |i: usize| xs(i / len, start + i % len);
            if PARTS || len == 1 {
                let list: Vec<&BlockQ8K> = (0..blocks * len).map(block).collect();
                self.tokens::<K, PARTS>(k, start, &list, fours, out);
            } else {
                // Rows of several activations are several streams.
                copies.clear();
                copies.extend((0..blocks * len).map(|i| *block(i)));
                let list: Vec<&BlockQ8K> = copies.iter().collect();
                self.tokens::<K, PARTS>(k, start, &list, fours, out);
            }
        }
    }

    fn tokens<K: RowKernel, const PARTS: bool>(
        &self,
        k: K,
        start: usize,
        xs: &[&BlockQ8K],
        fours: &mut Vec<Four>,
        out: &mut [f32],
    ) {
        let len = xs.len().checked_div(self.blocks()).unwrap_or(0);
        if self.w.layout() == Layout::Panels {
            return self.panels::<K, PARTS>(k, start, xs, out);
        }
        if len == 1 && K::TERMS {
            return self.along::<K, PARTS>(k, start, xs, fours, out);
        }
        let mut done = 0;
        if K::SIXTEEN && (len >= K::SIXTEEN_FROM || len > 1 && !K::EIGHT) {
            let product = |w, xs: &[&BlockQ8K], ahead, sums: &mut [_]| {
                k.q4_k_sixteen_ahead(w, xs, ahead, sums);
            };
            done = self.lockstep::<K, 16, PARTS>(k, start, done, xs, product, out);
        }
        if K::EIGHT {
            let product = |w, xs: &[&BlockQ8K], ahead, sums: &mut [_]| {
                k.q4_k_eight(w, xs, ahead, sums);
            };
            done = self.lockstep::<K, 8, PARTS>(k, start, done, xs, product, out);
        }
        self.row_by_row::<K, PARTS>(k, start, done, xs, out);
    }

    /// Whole groups of `N` rows from `first` on; returns where they end.
    fn lockstep<K: RowKernel, const N: usize, const PARTS: bool>(
        &self,
        k: K,
        start: usize,
        first: usize,
        xs: &[&BlockQ8K],
        product: impl Fn(Rows<'a, N>, &[&BlockQ8K], *const u8, &mut [[f32; N]]),
        out: &mut [f32],
    ) -> usize {
        let blocks = self.blocks();
        let tokens = xs.len().checked_div(blocks).unwrap_or(0);
        let end = first + (self.w.rows() - first) / N * N;
        let mut sums = [[0.0; N]; TOKENS_AT_ONCE];
        let sums = &mut sums[..tokens];
        for group in (first..end).step_by(N) {
            sums.fill([0.0; N]);
            for (b, xs) in xs.chunks_exact(tokens).enumerate() {
                let ahead = self.ahead(k, group + N, N, (b, blocks));
                product(Rows::new(self.w, group, b), xs, ahead, sums);
                if PARTS {
                    self.spread::<N, PARTS>(start, b, group, sums, out);
                    sums.fill([0.0; N]);
                }
            }
            if !PARTS {
                self.spread::<N, PARTS>(start, 0, group, sums, out);
            }
        }
        end
    }

    /// Rows that are stored in panels.
    fn panels<K: RowKernel, const PARTS: bool>(
        &self,
        k: K,
        start: usize,
        xs: &[&BlockQ8K],
        out: &mut [f32],
    ) {
        let blocks = self.blocks();
        let tokens = xs.len().checked_div(blocks).unwrap_or(0);
        if !PARTS {
            let rows = self.w.rows();
            out[start * rows..(start + tokens) * rows].fill(0.0);
        }
        for (p, row) in (0..self.w.rows()).step_by(ROWS).enumerate() {
            let ahead = |b: usize| self.panel_ahead(p * blocks + b + PANEL_BLOCKS_AHEAD);
            let mut places = Places {
                out: &mut out[self.at::<PARTS>(start, 0, row)..],
                of_token: self.at::<PARTS>(1, 0, 0),
                of_block: if PARTS { self.w.rows() } else { 0 },
                block: 0,
            };
            k.q4_k_panel::<PARTS>(self.w.panel(p), xs, ahead, &mut places);
        }
    }

    /// Where block `i` of all panels is, or of those that follow. An address to ask for, never to
    /// read.
    fn panel_ahead(&self, i: usize) -> *const u8 {
        let here = self.w.rows() / ROWS * self.blocks();
        let (w, i) = match self.then {
            Some(next) if i >= here => (next, i - here),
            _ => (self.w, i),
        };
        let blocks = (w.cols() / 256).max(1);
        let offset = i / blocks * w.panel_stride() + i % blocks * PANEL_BLOCK;
        w.start().wrapping_add(offset)
    }

    fn spread<const N: usize, const PARTS: bool>(
        &self,
        start: usize,
        block: usize,
        row: usize,
        sums: &[[f32; N]],
        out: &mut [f32],
    ) {
        for (t, sums) in sums.iter().enumerate() {
            out[self.at::<PARTS>(start + t, block, row)..][..N].copy_from_slice(sums);
        }
    }

    /// Where to find what is `share` of `of` into the `count` rows from `row` on, or into what
    /// follows the last row. An address to ask for, never to read.
    fn ahead<K: RowKernel>(
        &self,
        k: K,
        row: usize,
        count: usize,
        (share, of): (usize, usize),
    ) -> *const u8 {
        let here = self.w.rows();
        let (w, row) = match self.then {
            Some(next) if row >= here => (next, row - here),
            _ => (self.w, row),
        };
        if w.is_dense() && K::EIGHT {
            let offset = row * w.row_bytes() + count * w.row_bytes() / of * share;
            return w.start().wrapping_add(offset);
        }
        // What lies between the rows of a strip is for others to read, so no run of addresses;
        // nor are there kernels of sixteen rows alone that would ask for it.
        for row in row + count * share / of..row + count * (share + 1) / of {
            if row < w.rows() {
                k.prefetch(w.row(row).as_ptr(), w.row_bytes());
            }
        }
        w.start()
    }

    /// One activation.
    fn along<K: RowKernel, const PARTS: bool>(
        &self,
        k: K,
        token: usize,
        xs: &[&BlockQ8K],
        fours: &mut Vec<Four>,
        out: &mut [f32],
    ) {
        fours.clear();
        for four in xs.as_chunks::<4>().0 {
            let mut arranged = Four::ZERO;
            for (i, x) in four.iter().enumerate() {
                arranged.set(i, x);
            }
            fours.push(arranged);
        }
        let mut short = [0.0; LONG_ROW];
        let mut long = vec![0.0; if xs.len() > LONG_ROW { xs.len() } else { 0 }];
        let terms = match short.get_mut(..xs.len()) {
            Some(short) => short,
            None => &mut long,
        };
        let rows_ahead = STREAM_AHEAD.div_ceil(self.w.row_bytes().max(1));
        for r in 0..self.w.rows() {
            let ahead = self.ahead(k, r + rows_ahead, 1, (0, 1));
            k.q4_k_terms(self.w.row(r), xs, fours, ahead, terms);
            if PARTS {
                for (b, term) in terms.iter().enumerate() {
                    out[self.at::<PARTS>(token, b, r)] = 0.0 + term;
                }
            } else {
                out[self.at::<PARTS>(token, 0, r)] = terms.iter().fold(0.0, |sum, term| sum + term);
            }
        }
    }

    fn row_by_row<K: RowKernel, const PARTS: bool>(
        &self,
        k: K,
        start: usize,
        first: usize,
        xs: &[&BlockQ8K],
        out: &mut [f32],
    ) {
        if first == self.w.rows() {
            return;
        }
        let blocks = self.blocks();
        let tokens = xs.len().checked_div(blocks).unwrap_or(0);
        let mut results = [0.0; TOKENS_AT_ONCE];
        let results = &mut results[..tokens];
        let mut sums = [0.0; TOKENS_AT_ONCE];
        let rows_ahead = STREAM_AHEAD.div_ceil(self.w.row_bytes().max(1));
        for r in first..self.w.rows() {
            if r + rows_ahead < self.w.rows() {
                k.prefetch(self.w.row(r + rows_ahead).as_ptr(), self.w.row_bytes());
            }
            sums.fill(0.0);
            let parts = self
                .w
                .row(r)
                .chunks_exact(144)
                .zip(xs.chunks_exact(tokens.max(1)));
            for (b, (part, xs)) in parts.enumerate() {
                let mut list: [&[BlockQ8K]; TOKENS_AT_ONCE] = [&[]; TOKENS_AT_ONCE];
                for (slot, x) in list.iter_mut().zip(xs) {
                    *slot = std::slice::from_ref(*x);
                }
                tile::q8_k_row(k, self.w.ty(), part, &list[..tokens], results);
                for (t, result) in results.iter().enumerate() {
                    if PARTS {
                        out[self.at::<PARTS>(start + t, b, r)] = *result;
                    } else {
                        sums[t] += result;
                    }
                }
            }
            if !PARTS {
                for (t, sum) in sums[..tokens].iter().enumerate() {
                    out[self.at::<PARTS>(start + t, 0, r)] = *sum;
                }
            }
        }
    }
}
