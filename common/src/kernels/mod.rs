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
//! Bits of NaN results are not part of the promise, only that they are NaN. Weight bytes are
//! foreign: whatever they hold, a product reads only its row and only its row's results suffer.

#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod activations;
mod lanes;
mod matmul;
mod matrix;
mod parts;
mod probe;
mod q4_k;
mod q8_lone;
mod q8_panel;
mod row;
mod scalar;
mod sixteen;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(test)]
mod tests;

use std::ops::Range;

use row::RowKernel;
use scalar::Scalar;
use tile::{SCRATCH, Tokens};

pub use activations::{ActRow, Activations};
pub use matmul::Product;
pub use matrix::{Matrix, ShapeError};

/// An instruction set that is unknown or that this CPU lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no kernels {name:?} on this CPU, which has {available} (or auto)")]
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
    Avx512Bw(x86_64::Avx512Bw),
    #[cfg(target_arch = "x86_64")]
    Avx512(x86_64::Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(aarch64::Arm<aarch64::Base>),
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
            Isa::Avx512Bw($k) => $call,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512($k) => $call,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon($k) => $call,
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod($k) => $call,
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm($k) => $call,
        }
    };
}

impl Kernels {
    /// The fastest kernels of this CPU.
    #[must_use]
    pub fn detect() -> Self {
        Self::available().last().copied().unwrap_or(Self::scalar())
    }

    /// Those that every CPU has.
    fn scalar() -> Self {
        Self(Isa::Scalar(Scalar))
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
            x86_64::Avx512Bw::detect().map(Isa::Avx512Bw),
            #[cfg(target_arch = "x86_64")]
            x86_64::Avx512::detect().map(Isa::Avx512),
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
        with_kernel!(self, k => k.name())
    }

    /// `a · b`.
    ///
    /// # Panics
    /// The lengths differ.
    #[must_use]
    pub fn dot_f32(self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len(), "lengths of a dot product");
        let mut out = [0.0];
        with_kernel!(self, k => k.dots_f32(a, &[b], &mut out));
        out[0]
    }

    /// `out[i] = a · bs[i]`, each with the bits of [`Kernels::dot_f32`].
    ///
    /// # Panics
    /// The lengths differ.
    pub fn dots_f32(self, a: &[f32], bs: &[&[f32]], out: &mut [f32]) {
        assert_eq!(bs.len(), out.len(), "dot products and places for them");
        assert!(
            bs.iter().all(|b| b.len() == a.len()),
            "lengths of a dot product"
        );
        with_kernel!(self, k => k.dots_f32(a, bs, out));
    }

    /// `y += factors[i] * xs[i]` for each `i` in turn, elementwise and unfused.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn add_scaled(self, factors: &[f32], xs: &[&[f32]], y: &mut [f32]) {
        assert_eq!(
            factors.len(),
            xs.len(),
            "rows and factors of a scaled addition"
        );
        assert!(
            xs.iter().all(|x| x.len() == y.len()),
            "lengths of a scaled addition"
        );
        with_kernel!(self, k => k.add_scaled(factors, xs, y));
    }

    /// The rows `rows` of `w` times each of `xs`, on this thread:
    /// `out[(r - rows.start) * xs.len() + t] = w[r] · xs[t]`.
    ///
    /// A weight row is unpacked once for up to 64 tokens, fewer where those are wide. Quantised
    /// weights meet f32 activations as f32: the row is dequantised first.
    ///
    /// # Panics
    /// `rows` is not within `w`, `out` has another length, a row of `xs` has other columns than
    /// `w`, `xs` mixes formats, or its format is neither f32 nor that of the weight's type
    /// ([`crate::quant::GgmlType::activation_format`]).
    pub fn tile(self, w: &Matrix<'_>, rows: Range<usize>, xs: &[ActRow<'_>], out: &mut [f32]) {
        let part = w.row_range(rows);
        SCRATCH.with_borrow_mut(|scratch| {
            let buffer = &mut scratch.rows;
            with_kernel!(self, k => tile::run(k, &part, Tokens::Rows(xs), buffer, out));
        });
    }

    /// As [`Kernels::tile`], but token by token: `out[t * rows.len() + r - rows.start]`. `then` is
    /// what this thread will read next, of which the first rows are asked for in time.
    ///
    /// # Panics
    /// As [`Kernels::tile`].
    pub fn tile_by_token(
        self,
        w: &Matrix<'_>,
        rows: Range<usize>,
        xs: &[ActRow<'_>],
        then: Option<&Matrix<'_>>,
        out: &mut [f32],
    ) {
        let part = w.row_range(rows);
        SCRATCH.with_borrow_mut(
            |scratch| with_kernel!(self, k => parts::run_whole(k, &part, xs, then, scratch, out)),
        );
    }

    /// The rows `rows` of `w` times activations, every block of 256 columns apart, on this thread:
    /// `out[(t * blocks + b) * rows.len() + r - rows.start] = w[r] · x[t]` over the columns of
    /// block `b` (the last one possibly narrower), where `xs[b * tokens + t]` holds the columns
    /// `b` of activation `t`. `then` is what this thread will read next.
    ///
    /// The rows are read from one end to the other, unlike strip by strip.
    ///
    /// # Panics
    /// As [`Kernels::tile`]; `xs` is not whole tokens of whole rows.
    pub fn tile_parts(
        self,
        w: &Matrix<'_>,
        rows: Range<usize>,
        xs: &[ActRow<'_>],
        then: Option<&Matrix<'_>>,
        out: &mut [f32],
    ) {
        let part = w.row_range(rows);
        SCRATCH.with_borrow_mut(
            |scratch| with_kernel!(self, k => parts::run(k, &part, xs, then, scratch, out)),
        );
    }

    /// Asks the processor for an activation that will be read soon.
    pub fn prefetch(self, x: ActRow<'_>) {
        let (start, bytes) = x.place();
        with_kernel!(self, k => k.prefetch(start, bytes));
    }

    /// The whole product `out[t * w.rows() + r] = w[r] · x[t]`, on the threads of the current
    /// rayon pool.
    ///
    /// # Panics
    /// As [`Kernels::tile`].
    pub fn matmul(self, w: &Matrix<'_>, x: &Activations, out: &mut [f32]) {
        self.matmul_all(&mut [Product::new(*w, x, out)]);
    }

    /// Several products at once, on the threads of the current rayon pool: they wait for each
    /// other once, not after each.
    ///
    /// # Panics
    /// As [`Kernels::tile`]; a matrix of a product has not the columns of its activations, or no
    /// whole number of rows for each of its groups.
    pub fn matmul_all(self, products: &mut [Product<'_>]) {
        with_kernel!(self, k => matmul::run(k, products));
    }

    /// `out[i * stride + j] = a[i] · b[j]`, each with the bits of [`Kernels::dot_f32`].
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
