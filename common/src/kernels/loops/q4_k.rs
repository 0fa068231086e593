//! Q4_K rows times Q8_K activations, token by token in the output, in the loop that
//! [`select_q4_k`] chooses for the number of activations.
//!
//! What is read next is prefetched line by line between the products, at the pace at which it is
//! used up: bursts of prefetches would queue before the loads of the products.

use super::super::instruction_set::InstructionSet;
use super::super::operands::Matrix;
use super::super::operands::q4_k_blocks::{BlockRows, FourBlocks, PanelResults, Q4_K_ROWS};
use super::super::select::{PANEL_BLOCKS_AHEAD, Q4KLoop, STREAM_AHEAD, TOKENS_AT_ONCE};
use super::super::select::{Tuning, select_q4_k};
use crate::quant::{BlockQ8K, PANEL_BLOCK};

/// The longest row of block terms that is kept on the stack.
const LONG_ROW: usize = 64;

/// Buffers of one thread, kept between calls.
#[derive(Default)]
pub(in crate::kernels) struct Q4KScratch {
    /// Blocks of several activations, side by side in the order in which they are read.
    copies: Vec<BlockQ8K>,
    fours: Vec<FourBlocks>,
}

/// Weights and activations of a product.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Q4KProduct<'a> {
    pub(in crate::kernels) w: &'a Matrix<'a>,
    /// Activations.
    pub(in crate::kernels) tokens: usize,
    /// What the thread will read after `w`.
    pub(in crate::kernels) then: Option<&'a Matrix<'a>>,
}

impl<'a> Q4KProduct<'a> {
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
    pub(in crate::kernels) fn run<K: InstructionSet, const PARTS: bool>(
        &self,
        k: K,
        xs: impl Fn(usize, usize) -> &'a BlockQ8K,
        scratch: &mut Q4KScratch,
        out: &mut [f32],
    ) {
        let blocks = self.blocks();
        if blocks == 0 {
            return out.fill(0.0);
        }
        let Q4KScratch { copies, fours } = scratch;
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

    fn tokens<K: InstructionSet, const PARTS: bool>(
        &self,
        k: K,
        start: usize,
        xs: &[&BlockQ8K],
        fours: &mut Vec<FourBlocks>,
        out: &mut [f32],
    ) {
        let len = xs.len().checked_div(self.blocks()).unwrap_or(0);
        let chosen = select_q4_k(K::ISA, self.w.layout(), len);
        let mut done = 0;
        match chosen {
            Q4KLoop::PanelGemm => return self.panel_gemm::<K, PARTS>(k, start, xs, out),
            Q4KLoop::Gemv4Blocks => return self.gemv::<K, PARTS>(k, start, xs, fours, out),
            Q4KLoop::Gemm16Rows => {
                let product = |w, xs: &[&BlockQ8K], ahead, sums: &mut [_]| {
                    k.q4_k_gemm_16rows(w, xs, ahead, sums);
                };
                done = self.gemm::<K, 16, PARTS>(k, start, done, xs, product, out);
            }
            Q4KLoop::Gemm8Rows | Q4KLoop::Rows => {}
        }
        // Fewer than sixteen rows are left, or eight rows were chosen.
        if const { Tuning::of(K::ISA).q4_k_gemm_8rows } {
            let product = |w, xs: &[&BlockQ8K], ahead, sums: &mut [_]| {
                k.q4_k_gemm_8rows(w, xs, ahead, sums);
            };
            done = self.gemm::<K, 8, PARTS>(k, start, done, xs, product, out);
        }
        self.row_by_row::<K, PARTS>(k, start, done, xs, out);
    }

    /// Whole groups of `N` rows from `first` on; returns where they end.
    fn gemm<K: InstructionSet, const N: usize, const PARTS: bool>(
        &self,
        k: K,
        start: usize,
        first: usize,
        xs: &[&BlockQ8K],
        product: impl Fn(BlockRows<'a, N>, &[&BlockQ8K], *const u8, &mut [[f32; N]]),
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
                product(BlockRows::new(self.w, group, b), xs, ahead, sums);
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
    fn panel_gemm<K: InstructionSet, const PARTS: bool>(
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
        for (p, row) in (0..self.w.rows()).step_by(Q4_K_ROWS).enumerate() {
            let ahead = |b: usize| self.panel_ahead(p * blocks + b + PANEL_BLOCKS_AHEAD);
            let mut results = PanelResults {
                out: &mut out[self.at::<PARTS>(start, 0, row)..],
                of_token: self.at::<PARTS>(1, 0, 0),
                of_block: if PARTS { self.w.rows() } else { 0 },
                block: 0,
            };
            k.q4_k_panel_gemm::<PARTS>(self.w.panel(p), xs, ahead, &mut results);
        }
    }

    /// Where block `i` of all panels is, or of those that follow. An address to prefetch from,
    /// never to read.
    fn panel_ahead(&self, i: usize) -> *const u8 {
        let here = self.w.rows() / Q4_K_ROWS * self.blocks();
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
    /// follows the last row. An address to prefetch from, never to read.
    fn ahead<K: InstructionSet>(
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
        if w.is_dense() && const { Tuning::of(K::ISA).q4_k_prefetches } {
            let offset = row * w.row_bytes() + count * w.row_bytes() / of * share;
            return w.start().wrapping_add(offset);
        }
        // What lies between the rows of a strip is for others to read, so that there is no run of
        // addresses; other sets have loops that do not prefetch.
        for row in row + count * share / of..row + count * (share + 1) / of {
            if row < w.rows() {
                k.prefetch(w.row(row).as_ptr(), w.row_bytes());
            }
        }
        w.start()
    }

    /// One activation.
    fn gemv<K: InstructionSet, const PARTS: bool>(
        &self,
        k: K,
        token: usize,
        xs: &[&BlockQ8K],
        fours: &mut Vec<FourBlocks>,
        out: &mut [f32],
    ) {
        FourBlocks::lay_out(xs, fours);
        let mut short = [0.0; LONG_ROW];
        let mut long = vec![0.0; if xs.len() > LONG_ROW { xs.len() } else { 0 }];
        let terms = match short.get_mut(..xs.len()) {
            Some(short) => short,
            None => &mut long,
        };
        let rows_ahead = STREAM_AHEAD.div_ceil(self.w.row_bytes().max(1));
        for r in 0..self.w.rows() {
            let ahead = self.ahead(k, r + rows_ahead, 1, (0, 1));
            k.q4_k_gemv_4blocks(self.w.row(r), xs, fours, ahead, terms);
            if PARTS {
                for (b, term) in terms.iter().enumerate() {
                    out[self.at::<PARTS>(token, b, r)] = 0.0 + term;
                }
            } else {
                out[self.at::<PARTS>(token, 0, r)] = terms.iter().fold(0.0, |sum, term| sum + term);
            }
        }
    }

    fn row_by_row<K: InstructionSet, const PARTS: bool>(
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
                k.q4_k(part, &list[..tokens], results);
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
