//! Products of quantised weights with activations, for the instructions that the CPU has.
//!
//! [`Kernels`] is chosen once at start and passed down. Every instruction set gives the bits of
//! the scalar definition:
//!
//! - Float dot: 16 lanes, element `i` in lane `i % 16`, products added unfused in ascending order,
//!   then a tree over the lanes.
//! - Q8 dot (Q8_0 and MXFP4 weights): an exact integer sum for every block of 32; lane `b % 16`
//!   takes `(dw * dx) * sum` of block `b`, then the same tree.
//! - Q8_K dot (K-quants, IQ2_XXS): two exact integer sums for every super-block; one accumulator
//!   takes `(d8 * d) * I - (d8 * dmin) * M` in ascending order, without the second term where the
//!   format has no mins.
//!
//! Every set agrees on whether a result is NaN; its payload is unspecified. Weight bytes are foreign:
//! whatever they hold, a product reads only its row and only its row's results suffer.
//!
//! # The folder
//!
//! A module imports what stands below it:
//!
//! | what | where |
//! |---|---|
//! | the door | this file; `reference` for tests and benches; `roofline` for the machine's limits |
//! | whole products on all threads, ranges of rows on one | `matmul`, `row_range` |
//! | the loops, generic over the instruction set | `loops` |
//! | which loop, and its tuning | `select` |
//! | the instruction sets | `x86_64`, `aarch64`, and the definition, `scalar` |
//! | what an instruction set offers | `instruction_set` |
//! | weights and activations | `operands` |
//! | the shape of float sums | `lanes` |
//!
//! # What a new weight type touches
//!
//! 1. `quant`: its file, `GgmlType`, `dequantize_row`, and `SuperBlock` (256 weights a block) or
//!    `SmallBlock` (32), which suffice for every instruction set.
//! 2. `select`: `SuperType` or `SmallType`; the compiler then leads to `loops::rows`.
//! 3. Where it is worth it, a method of `InstructionSet` with its definition in `scalar`, a fast
//!    version in a set's folder, and a `Loop` with its rule in `select`.
//! 4. The lists of types in `tests`, in `quant::vectors` and in the fuzz target, and where the
//!    scales of a block lie there (`halves`).
//! 5. `model::synthetic` and the tests of formats, which make models of it.
//!
//! # What a new instruction set touches
//!
//! 1. A type in `x86_64` or `aarch64` that only `detect` makes, with an `InstructionSet` of the
//!    methods that it speeds up; its `Base` does the rest, but for `multiply_bytes` in `peak`.
//! 2. `IsaName`, with the name that `--isa` takes.
//! 3. `Tuning::of` in `select`: which of its loops are the fastest, as measured.
//! 4. `Isa`, `with_kernel!` and [`Kernels::available`], slowest first, in this file.
//! 5. `tests/arm.sh` for an ARM set; the tests, benches and the fuzz target find it themselves.

#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod instruction_set;
mod lanes;
mod loops;
mod matmul;
mod operands;
mod reference;
mod roofline;
mod row_range;
mod scalar;
mod select;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(test)]
mod tests;

use std::ops::Range;

use instruction_set::{InstructionSet, IsaName};
use loops::SCRATCH;
use scalar::Scalar;

use crate::quant::{ActivationFormat, quantize_q8, quantize_q8_k};

pub use matmul::Product;
pub use operands::{ActRow, Activations, Matrix, ShapeError};
pub use select::{LoopChoice, LoopTable};

/// An instruction set that is unknown or that this CPU lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown kernels {name:?}: this CPU has {available} (or auto)")]
pub struct UnknownIsa {
    name: String,
    available: String,
}

/// The chosen instruction set. A value exists only for instructions that the CPU has.
#[derive(Clone, Copy, Debug)]
pub struct Kernels(Isa);

#[derive(Clone, Copy, Debug)]
enum Isa {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(x86_64::Avx2),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(x86_64::AvxVnni),
    #[cfg(target_arch = "x86_64")]
    Avx512(x86_64::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(x86_64::Avx512Vnni),
    #[cfg(target_arch = "aarch64")]
    Neon(aarch64::Arm<aarch64::Neon>),
    #[cfg(target_arch = "aarch64")]
    Dotprod(aarch64::Arm<aarch64::Dotprod>),
    #[cfg(target_arch = "aarch64")]
    I8mm(aarch64::Arm<aarch64::I8mm>),
}

/// Calls the same generic code for whichever instruction set was chosen.
macro_rules! with_kernel {
    ($kernels:expr, $k:ident => $call:expr) => {
        match $kernels.0 {
            Isa::Scalar($k) => $call,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2($k) => $call,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni($k) => $call,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512($k) => $call,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni($k) => $call,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon($k) => $call,
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod($k) => $call,
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm($k) => $call,
        }
    };
}
use with_kernel;

impl Kernels {
    /// The fastest kernels of this CPU.
    #[must_use]
    pub fn detect() -> Self {
        let scalar = Self(Isa::Scalar(Scalar));
        Self::available().last().copied().unwrap_or(scalar)
    }

    /// The kernels of that name, or the fastest ones of this CPU for `auto`.
    ///
    /// x86-64 has `avx2`, `avxvnni`, `avx512` and `avx512vnni`; 64-bit ARM has `neon`, `dotprod`
    /// and `i8mm`; all have `scalar`.
    ///
    /// # Errors
    /// The name is none of these, or the CPU lacks the instructions.
    pub fn named(name: &str) -> Result<Self, UnknownIsa> {
        if name == "auto" {
            return Ok(Self::detect());
        }
        let available = Self::available();
        available
            .iter()
            .copied()
            .find(|k| k.name() == name)
            .ok_or_else(|| UnknownIsa {
                name: name.to_owned(),
                available: available
                    .iter()
                    .map(|k| k.name())
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }

    /// All kernels that this CPU can run, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let found = [
            Some(Isa::Scalar(Scalar)),
            #[cfg(target_arch = "x86_64")]
            x86_64::Avx2::detect().map(Isa::Avx2),
            #[cfg(target_arch = "x86_64")]
            x86_64::AvxVnni::detect().map(Isa::AvxVnni),
            #[cfg(target_arch = "x86_64")]
            x86_64::Avx512::detect().map(Isa::Avx512),
            #[cfg(target_arch = "x86_64")]
            x86_64::Avx512Vnni::detect().map(Isa::Avx512Vnni),
            #[cfg(target_arch = "aarch64")]
            aarch64::Arm::detect().map(Isa::Neon),
            #[cfg(target_arch = "aarch64")]
            aarch64::Arm::detect().map(Isa::Dotprod),
            #[cfg(target_arch = "aarch64")]
            aarch64::Arm::detect().map(Isa::I8mm),
        ];
        found.into_iter().flatten().map(Self).collect()
    }

    /// The names of [`Kernels::available`] and which of them is the fastest.
    #[must_use]
    pub fn summary() -> String {
        let names: Vec<&str> = Self::available().iter().map(|k| k.name()).collect();
        format!(
            "{} (auto takes {})",
            names.join(", "),
            Self::detect().name()
        )
    }

    /// What `--isa` takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.isa().text()
    }

    /// Which loop multiplies which weights with how many activations on these kernels.
    #[must_use]
    pub fn loop_table(self) -> LoopTable {
        LoopTable::of(self.isa())
    }

    fn isa(self) -> IsaName {
        fn isa_of<K: InstructionSet>(_: K) -> IsaName {
            K::ISA
        }
        with_kernel!(self, k => isa_of(k))
    }

    /// The rows `rows` of `w` times each of `xs`, on this thread:
    /// `out[t * rows.len() + r - rows.start] = w[r] · xs[t]`.
    ///
    /// A weight row is unpacked once for up to 64 activations, fewer where those are wide.
    /// Quantised weights are multiplied with f32 activations as f32: the row is dequantised first.
    /// `then` is what this thread will read next; its first rows are prefetched.
    ///
    /// # Panics
    /// `rows` is not within `w` or cuts a panel, `out` has another length, a row of `xs` has other
    /// columns than `w`, `xs` mixes formats, or its format is neither f32 nor that of the weight's
    /// type ([`crate::quant::GgmlType::activation_format`]).
    pub fn multiply_rows(
        self,
        w: &Matrix<'_>,
        rows: Range<usize>,
        xs: &[ActRow<'_>],
        then: Option<&Matrix<'_>>,
        out: &mut [f32],
    ) {
        let range = w.row_range(rows);
        SCRATCH.with_borrow_mut(
            |scratch| with_kernel!(self, k => row_range::run(k, &range, xs, then, scratch, out)),
        );
    }

    /// As [`Kernels::multiply_rows`], but every block of 256 columns apart:
    /// `out[(t * blocks + b) * rows.len() + r - rows.start] = w[r] · x[t]` over the columns of
    /// block `b` (the last one possibly narrower), where `xs[b * tokens + t]` holds the columns
    /// `b` of activation `t`.
    ///
    /// The rows are read from one end to the other, unlike in a product for each strip of columns.
    ///
    /// # Panics
    /// As [`Kernels::multiply_rows`]; `xs` does not have as many rows for each block.
    pub fn multiply_rows_by_block(
        self,
        w: &Matrix<'_>,
        rows: Range<usize>,
        xs: &[ActRow<'_>],
        then: Option<&Matrix<'_>>,
        out: &mut [f32],
    ) {
        let range = w.row_range(rows);
        SCRATCH.with_borrow_mut(|scratch| {
            with_kernel!(self, k => row_range::run_by_block(k, &range, xs, then, scratch, out));
        });
    }

    /// Prefetches an activation that will be read soon.
    pub fn prefetch(self, x: ActRow<'_>) {
        let (start, bytes) = x.place();
        with_kernel!(self, k => k.prefetch(start, bytes));
    }

    /// Whole products, on the threads of the current rayon pool, which wait for each other once for
    /// all of them. See [`Product`] for what each computes.
    ///
    /// # Panics
    /// As [`Kernels::multiply_rows`]; a matrix of a product does not have the columns of its
    /// activations, or its rows are not as many for each of its groups.
    pub fn matmul_all(self, products: &mut [Product<'_>]) {
        with_kernel!(self, k => matmul::run(k, products));
    }

    /// `out[i * stride + j] = a[i] · b[j]`, each summed in the shape of the float dot above.
    ///
    /// # Panics
    /// The lengths differ, or `out` is too short or `stride` too small for all products.
    pub fn dots_grid(self, a: &[&[f32]], b: &[&[f32]], out: &mut [f32], stride: usize) {
        let (Some(last), Some(first)) = (a.len().checked_sub(1), a.first()) else {
            return;
        };
        assert!(
            b.len() <= stride && last * stride + b.len() <= out.len(),
            "places for {} x {} dot products",
            a.len(),
            b.len()
        );
        assert!(
            a.iter().chain(b).all(|row| row.len() == first.len()),
            "lengths of dot products"
        );
        if !b.is_empty() {
            with_kernel!(self, k => k.dots_grid(a, b, out, stride));
        }
    }

    /// `ys[h] += factors[h * stride + i] * xs[i]` for each `i` in turn and every row `h` of `ys`,
    /// which are as long as those of `xs`; elementwise and unfused.
    ///
    /// # Panics
    /// The lengths differ, or there are too few factors.
    pub fn add_scaled_grid(self, factors: &[f32], stride: usize, xs: &[&[f32]], ys: &mut [f32]) {
        let Some(dim) = xs.first().map(|x| x.len()).filter(|&dim| dim > 0) else {
            return;
        };
        let heads = ys.len() / dim;
        assert!(
            ys.len() == heads * dim && xs.iter().all(|x| x.len() == dim),
            "lengths of scaled additions"
        );
        if let Some(last) = heads.checked_sub(1) {
            assert!(
                xs.len() <= stride && last * stride + xs.len() <= factors.len(),
                "factors of scaled additions"
            );
            with_kernel!(self, k => k.add_scaled_grid(factors, stride, xs, ys));
        }
    }

    /// Runs `work` with everything that is inlined into it compiled for these instructions. The
    /// compiler then neither fuses nor reorders float operations, so results stay the same.
    pub fn vectorised<R>(self, work: impl FnOnce() -> R) -> R {
        with_kernel!(self, k => k.vectorised(work))
    }
}

impl Activations {
    /// As [`Activations::set`], with the instructions of `kernels`.
    ///
    /// # Panics
    /// As [`Activations::set`].
    pub fn set_with(
        &mut self,
        kernels: Kernels,
        format: ActivationFormat,
        cols: usize,
        values: &[f32],
    ) {
        self.fill(
            format,
            cols,
            values,
            |values, blocks| kernels.vectorised(|| quantize_q8(values, blocks)),
            |values, blocks| kernels.vectorised(|| quantize_q8_k(values, blocks)),
        );
    }
}
