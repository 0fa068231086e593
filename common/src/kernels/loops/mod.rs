//! The loops over rows, blocks and activations, generic over the instruction set.
//!
//! What [`super::select`] chooses among stands in [`gemv`] (Q8_0, F16), [`q8_0_gemm`], [`q4_k`]
//! (both, plain and in panels) and [`rows`] (any type, row by row).

use std::cell::RefCell;

pub(super) mod gemv;
pub(super) mod q4_k;
pub(super) mod q8_0_gemm;
pub(super) mod rows;

/// Buffers of one thread, kept between calls.
#[derive(Default)]
pub(super) struct Scratch {
    /// Weight rows as f32.
    pub(super) rows: Vec<f32>,
    /// Results of a range of rows before they are spread over the output.
    pub(super) results: Vec<f32>,
    pub(super) q8_0: q8_0_gemm::Q8Scratch,
    pub(super) q4_k: q4_k::Q4KScratch,
}

thread_local! {
    pub(super) static SCRATCH: RefCell<Scratch> = RefCell::default();
}
