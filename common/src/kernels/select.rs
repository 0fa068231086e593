//! Which loop multiplies what: the one place that decides, with the numbers that it was tuned by.
//!
//! [`select`] depends on the instruction set, the type and the layout of the weights, the format
//! of the activations and how many of them are multiplied together. [`LoopTable`] is what it
//! decides for all of these.

use std::fmt;

use super::instruction_set::IsaName;
use crate::quant::{ActivationFormat, GgmlType, Layout, PANEL_ROWS};

/// The most activations that are multiplied with all rows of a range before the next ones are.
/// Larger batches come in parts of so many.
pub(super) const TOKENS_AT_ONCE: usize = 64;

/// Bytes of the activations that are multiplied with a range of rows together, other than in the
/// loops of Q4_K: they and the weights stay in a second-level cache.
pub(super) const TOKEN_BYTES: usize = 320 << 10;

/// The fewest activations that are multiplied together, whatever their bytes.
pub(super) const TOKENS_AT_LEAST: usize = 8;

/// Weight rows that [`Loop::F32Gemm4Rows`] multiplies together.
pub(super) const F32_ROWS_SMALL_BATCH: usize = 4;

/// Weight rows that [`Loop::F32Gemm8Rows`] multiplies together.
pub(super) const F32_ROWS_LARGE_BATCH: usize = 8;

/// Activations from which f32 rows are multiplied eight at a time.
const F32_MANY: usize = 4;

/// Bytes from the row that a GEMV reads to where it prefetches.
pub(super) const STREAM_AHEAD: usize = 6 << 10;

/// Blocks from the panel block that is read to the one that is prefetched.
pub(super) const PANEL_BLOCKS_AHEAD: usize = 4;

/// Weight bytes of a task of a whole product: small enough to stay in the first caches while they
/// are multiplied with one set of activations after the other.
pub(super) const TASK_BYTES: usize = 64 << 10;

/// The same where a task only streams through its weights.
pub(super) const STREAM_TASK_BYTES: usize = 256 << 10;

/// Weight-by-token products below which waking other threads costs more than it saves.
pub(super) const PARALLEL_PRODUCTS: usize = 1 << 16;

/// What is fastest on an instruction set, as measured.
pub(super) struct Tuning {
    /// Whether one activation takes [`Q4KLoop::Gemv4Blocks`].
    q4_k_gemv: bool,
    /// Whether there is a [`Q4KLoop::Gemm8Rows`].
    pub(super) q4_k_gemm_8rows: bool,
    /// Activations from which [`Q4KLoop::Gemm16Rows`] is the fastest.
    q4_k_gemm_16rows_from: usize,
    /// Whether one activation takes [`Loop::Q8_0Gemv`].
    q8_0_gemv: bool,
    /// Whether several activations take [`Loop::Q8_0Gemm32Rows`].
    q8_0_gemm: bool,
    /// Whether one activation takes [`Loop::F16Gemv`].
    f16_gemv: bool,
    /// Whether the loops of Q4_K rows prefetch from the address that they are given.
    pub(super) q4_k_prefetches: bool,
}

impl Tuning {
    const NOTHING: Self = Self {
        q4_k_gemv: false,
        q4_k_gemm_8rows: false,
        q4_k_gemm_16rows_from: usize::MAX,
        q8_0_gemv: false,
        q8_0_gemm: false,
        f16_gemv: false,
        q4_k_prefetches: false,
    };

    const AVX2: Self = Self {
        q4_k_gemv: true,
        q4_k_gemm_8rows: true,
        f16_gemv: true,
        q4_k_prefetches: true,
        ..Self::NOTHING
    };

    /// That of an instruction set.
    pub(super) const fn of(isa: IsaName) -> Self {
        match isa {
            IsaName::Scalar | IsaName::Neon | IsaName::Dotprod => Self::NOTHING,
            IsaName::I8mm => Self {
                q4_k_gemm_16rows_from: 2,
                ..Self::NOTHING
            },
            IsaName::Avx2 | IsaName::AvxVnni => Self::AVX2,
            // Its loop of eight rows is AVX2's, with vectors of 256 bits.
            IsaName::Avx512 => Self {
                q4_k_gemm_16rows_from: 2,
                ..Self::AVX2
            },
            IsaName::Avx512Vnni => Self {
                q4_k_gemm_16rows_from: 8,
                q8_0_gemv: true,
                q8_0_gemm: true,
                ..Self::AVX2
            },
        }
    }

    /// Whether plain rows of Q4_K have loops of their own.
    const fn q4_k_rows(&self) -> bool {
        self.q4_k_gemv || self.q4_k_gemm_8rows || self.q4_k_gemm_16rows_from < usize::MAX
    }
}

/// A loop, named by what it computes. GEMV is one activation, GEMM several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loop {
    /// Rows of Q4_K, in one of the loops that are theirs alone.
    Q4K(Q4KLoop),
    /// Q8_0: 16 blocks of a row at a time.
    Q8_0Gemv,
    /// Q8_0: 32 rows by 32 activations, a row a lane, unpacked once.
    Q8_0Gemm32Rows,
    /// F16: 32 columns of a row at a time.
    F16Gemv,
    /// Formats of 256 weights a block: a row by all activations, each block unpacked once.
    SuperBlocks(SuperType),
    /// Formats of 32 weights a block: a row by all activations, each block unpacked once.
    SmallBlocks(SmallType),
    /// Any format: four rows, widened to f32, by one activation at a time.
    F32Gemm4Rows,
    /// Any format: eight rows, widened to f32, by all activations.
    F32Gemm8Rows,
}

/// The loops of Q4_K alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Q4KLoop {
    /// Sixteen rows of a panel by a few activations, a row a lane, each block unpacked for them.
    PanelGemm,
    /// Four blocks of a row at a time. The weights are one stream.
    Gemv4Blocks,
    /// Eight rows by all activations, a row a lane. The rows and their successors fit into a
    /// first-level cache, so that memory still sees one stream, the prefetched one.
    Gemm8Rows,
    /// Sixteen rows by all activations, a row a lane, with the fewest instructions a product.
    Gemm16Rows,
    /// One row by all activations. Also takes the rows left over by the loops above.
    Rows,
}

/// A weight type of 256 weights a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SuperType {
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq2Xxs,
}

impl SuperType {
    /// # Panics
    /// Weights of this type are not multiplied with Q8_K activations.
    pub(super) fn of(ty: GgmlType) -> Self {
        match ty {
            GgmlType::Q2K => SuperType::Q2K,
            GgmlType::Q3K => SuperType::Q3K,
            GgmlType::Q4K => SuperType::Q4K,
            GgmlType::Q5K => SuperType::Q5K,
            GgmlType::Q6K => SuperType::Q6K,
            GgmlType::Iq2Xxs => SuperType::Iq2Xxs,
            _ => mismatch(ty, ActivationFormat::Q8K),
        }
    }
}

/// A weight type of 32 weights a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SmallType {
    Q8_0,
    Mxfp4,
}

impl SmallType {
    /// # Panics
    /// Weights of this type are not multiplied with Q8 activations.
    pub(super) fn of(ty: GgmlType) -> Self {
        match ty {
            GgmlType::Q8_0 => SmallType::Q8_0,
            GgmlType::Mxfp4 => SmallType::Mxfp4,
            _ => mismatch(ty, ActivationFormat::Q8),
        }
    }
}

#[cold]
fn mismatch(ty: GgmlType, format: ActivationFormat) -> ! {
    panic!("{ty} weights cannot be multiplied with {format:?} activations")
}

/// What is multiplied, as far as the loop depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands {
    pub(super) ty: GgmlType,
    pub(super) layout: Layout,
    pub(super) format: ActivationFormat,
    /// Activations that are multiplied together.
    pub(super) tokens: usize,
    /// Whether the activations are [`super::Activations`], which lay themselves out for GEMV and
    /// GEMM of Q8_0. Rows of experts come with lists of rows instead.
    pub(super) laid_out: bool,
}

/// The loop for these operands.
///
/// # Panics
/// Weights of this type are not multiplied with activations of this format.
pub(super) fn select(isa: IsaName, operands: Operands) -> Loop {
    let tuning = Tuning::of(isa);
    let Operands {
        ty,
        layout,
        format,
        tokens,
        laid_out,
    } = operands;
    let (one, many) = (laid_out && tokens == 1, laid_out && tokens > 1);
    match (format, ty) {
        (ActivationFormat::F32, GgmlType::F16) if one && tuning.f16_gemv => Loop::F16Gemv,
        (ActivationFormat::F32, _) => select_f32(tokens),
        (ActivationFormat::Q8, GgmlType::Q8_0) if one && tuning.q8_0_gemv => Loop::Q8_0Gemv,
        (ActivationFormat::Q8, GgmlType::Q8_0) if many && tuning.q8_0_gemm => Loop::Q8_0Gemm32Rows,
        (ActivationFormat::Q8, _) => Loop::SmallBlocks(SmallType::of(ty)),
        (ActivationFormat::Q8K, GgmlType::Q4K)
            if layout == Layout::Panels || tuning.q4_k_rows() =>
        {
            Loop::Q4K(select_q4_k(isa, layout, tokens))
        }
        (ActivationFormat::Q8K, _) => Loop::SuperBlocks(SuperType::of(ty)),
    }
}

/// The loop for f32 activations, whatever the weights.
pub(super) fn select_f32(tokens: usize) -> Loop {
    if tokens < F32_MANY {
        Loop::F32Gemm4Rows
    } else {
        Loop::F32Gemm8Rows
    }
}

/// The loop for Q4_K weights and Q8_K activations on a set that has any of [`Loop::Q4K`].
pub(super) fn select_q4_k(isa: IsaName, layout: Layout, tokens: usize) -> Q4KLoop {
    let tuning = Tuning::of(isa);
    match (layout, tokens) {
        (Layout::Panels, _) => Q4KLoop::PanelGemm,
        (_, 1) if tuning.q4_k_gemv => Q4KLoop::Gemv4Blocks,
        (_, _) if tokens >= tuning.q4_k_gemm_16rows_from => Q4KLoop::Gemm16Rows,
        (_, _) if tuning.q4_k_gemm_8rows => Q4KLoop::Gemm8Rows,
        _ => Q4KLoop::Rows,
    }
}

impl Loop {
    /// The loop's name: weight type, GEMV or GEMM, and what it takes at a time.
    const fn name(self) -> &'static str {
        match self {
            Loop::Q4K(Q4KLoop::PanelGemm) => "q4_k_panel_gemm_16rows",
            Loop::Q4K(Q4KLoop::Gemv4Blocks) => "q4_k_gemv_4blocks",
            Loop::Q4K(Q4KLoop::Gemm8Rows) => "q4_k_gemm_8rows",
            Loop::Q4K(Q4KLoop::Gemm16Rows) => "q4_k_gemm_16rows",
            Loop::Q4K(Q4KLoop::Rows) => "q4_k_gemm_1row",
            Loop::Q8_0Gemv => "q8_0_gemv_16blocks",
            Loop::Q8_0Gemm32Rows => "q8_0_gemm_32rows",
            Loop::F16Gemv => "f16_gemv",
            Loop::SuperBlocks(_) => "block256_gemm_1row",
            Loop::SmallBlocks(_) => "block32_gemm_1row",
            Loop::F32Gemm4Rows => "f32_gemm_4rows",
            Loop::F32Gemm8Rows => "f32_gemm_8rows",
        }
    }
}

/// One line of a [`LoopTable`]: `Display` prints weights, tokens and the loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopChoice {
    /// Type of the weights.
    pub ty: GgmlType,
    /// Order in which the weights are stored.
    pub layout: Layout,
    /// Whether these are rows of experts, where those take another loop than whole products.
    pub expert_rows: bool,
    /// The fewest activations, multiplied together, that take this loop.
    pub tokens_from: usize,
    /// The most of them, 64 at most: larger batches are multiplied in parts.
    pub tokens_to: usize,
    /// The loop's name: weight type, GEMV or GEMM, and what it takes at a time.
    pub name: &'static str,
}

/// Which loop multiplies weights of each type and layout with how many activations of the type's
/// own format, on one instruction set. With f32 activations, weights of any type take the loops of
/// F32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopTable {
    /// Name of the instruction set, as `--isa` takes it.
    pub isa: &'static str,
    /// In ascending order of tokens for each type and layout.
    pub choices: Vec<LoopChoice>,
}

impl LoopTable {
    /// What [`select`] decides on `isa`.
    pub(super) fn of(isa: IsaName) -> Self {
        let mut choices = Vec::new();
        for ty in GgmlType::ALL {
            let layouts = [Layout::Plain, Layout::Panels];
            let stored = |layout: &Layout| layout.fits(ty, PANEL_ROWS as u64);
            for layout in layouts.into_iter().filter(stored) {
                let whole = choose(isa, ty, layout, false);
                let rows = choose(isa, ty, layout, true);
                let names = |choices: &[LoopChoice]| -> Vec<_> {
                    let of = choices.iter().map(|c| (c.tokens_from, c.name));
                    of.collect()
                };
                let differ = names(&whole) != names(&rows);
                choices.extend(whole);
                choices.extend(rows.into_iter().filter(|_| differ));
            }
        }
        Self {
            isa: isa.text(),
            choices,
        }
    }
}

/// What is decided for every number of tokens, an entry for each run of the same loop.
fn choose(isa: IsaName, ty: GgmlType, layout: Layout, expert_rows: bool) -> Vec<LoopChoice> {
    let mut choices: Vec<LoopChoice> = Vec::new();
    for tokens in 1..=TOKENS_AT_ONCE {
        let operands = Operands {
            ty,
            layout,
            format: ty.activation_format(),
            tokens,
            laid_out: !expert_rows,
        };
        let name = select(isa, operands).name();
        match choices.last_mut() {
            Some(last) if last.name == name => last.tokens_to = tokens,
            _ => choices.push(LoopChoice {
                ty,
                layout,
                expert_rows,
                tokens_from: tokens,
                tokens_to: tokens,
                name,
            }),
        }
    }
    choices
}

impl fmt::Display for LoopChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = if self.expert_rows { " experts" } else { "" };
        let weights = format!("{} {}{of}", self.ty, self.layout.name());
        let tokens = match (self.tokens_from, self.tokens_to) {
            (from, TOKENS_AT_ONCE) => format!("{from} or more"),
            (from, to) if from == to => from.to_string(),
            (from, to) => format!("{from} to {to}"),
        };
        write!(f, "{weights:<19} {tokens:<10} {}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names for Q4_K rows with the tokens from which they are chosen.
    fn of(isa: IsaName, ty: GgmlType, layout: Layout) -> Vec<(usize, &'static str)> {
        let table = LoopTable::of(isa);
        let found = table
            .choices
            .iter()
            .filter(|c| (c.ty, c.layout, c.expert_rows) == (ty, layout, false));
        found.map(|c| (c.tokens_from, c.name)).collect()
    }

    #[test]
    fn every_set_has_its_loops() {
        let q4_k = |isa| of(isa, GgmlType::Q4K, Layout::Plain);
        let rows = vec![(1, "block256_gemm_1row")];
        for isa in [IsaName::Scalar, IsaName::Neon, IsaName::Dotprod] {
            assert_eq!(q4_k(isa), rows, "{isa:?}");
        }
        let i8mm = vec![(1, "q4_k_gemm_1row"), (2, "q4_k_gemm_16rows")];
        assert_eq!(q4_k(IsaName::I8mm), i8mm);
        for isa in [IsaName::Avx2, IsaName::AvxVnni] {
            let eight = vec![(1, "q4_k_gemv_4blocks"), (2, "q4_k_gemm_8rows")];
            assert_eq!(q4_k(isa), eight, "{isa:?}");
        }
        let wide = vec![(1, "q4_k_gemv_4blocks"), (2, "q4_k_gemm_16rows")];
        assert_eq!(q4_k(IsaName::Avx512), wide);
        let both = vec![
            (1, "q4_k_gemv_4blocks"),
            (2, "q4_k_gemm_8rows"),
            (8, "q4_k_gemm_16rows"),
        ];
        assert_eq!(q4_k(IsaName::Avx512Vnni), both);
        let q8_0 = vec![(1, "q8_0_gemv_16blocks"), (2, "q8_0_gemm_32rows")];
        let plain = Layout::Plain;
        assert_eq!(of(IsaName::Avx512Vnni, GgmlType::Q8_0, plain), q8_0);
        let f16 = vec![
            (1, "f16_gemv"),
            (2, "f32_gemm_4rows"),
            (4, "f32_gemm_8rows"),
        ];
        assert_eq!(of(IsaName::Avx2, GgmlType::F16, plain), f16);
    }

    #[test]
    fn panels_are_one_loop() {
        for isa in [IsaName::Scalar, IsaName::Avx512Vnni, IsaName::I8mm] {
            let panels = of(isa, GgmlType::Q4K, Layout::Panels);
            assert_eq!(panels, [(1, "q4_k_panel_gemm_16rows")], "{isa:?}");
        }
    }

    #[test]
    fn a_table_has_all_types_and_no_gaps() {
        let table = LoopTable::of(IsaName::Avx512Vnni);
        for ty in GgmlType::ALL {
            let lines: Vec<_> = table
                .choices
                .iter()
                .filter(|c| (c.ty, c.layout, c.expert_rows) == (ty, Layout::Plain, false))
                .collect();
            assert_eq!(lines[0].tokens_from, 1, "{ty}");
            assert_eq!(lines[lines.len() - 1].tokens_to, TOKENS_AT_ONCE, "{ty}");
            for pair in lines.windows(2) {
                assert_eq!(pair[0].tokens_to + 1, pair[1].tokens_from, "{ty}");
            }
        }
        let lines: Vec<String> = table.choices.iter().map(LoopChoice::to_string).collect();
        for line in [
            "Q4_K plain          2 to 7     q4_k_gemm_8rows",
            "Q8_0 plain          2 or more  q8_0_gemm_32rows",
            "Q8_0 plain experts  1 or more  block32_gemm_1row",
        ] {
            assert!(lines.iter().any(|found| found == line), "{lines:#?}");
        }
    }
}
