//! Q4_K rows in panels: sixteen rows that lie side by side, so that a kernel with a row in each
//! lane reads its operands as they are stored.
//!
//! A panel holds, block by block, the 36 words of four bytes of a Q4_K block, each word of all
//! sixteen rows before the next one. It has as many bytes as its rows, and whole panels follow each
//! other as rows do.

use std::fmt;
use std::str::FromStr;

use super::GgmlType;

/// Rows of a panel.
pub const PANEL_ROWS: usize = 16;

/// Bytes of a block of one row.
const BLOCK: usize = 144;

/// One block of every row of a panel: 36 words of each.
pub(crate) type PanelBlock = [[[u8; 4]; PANEL_ROWS]; BLOCK / 4];

/// Bytes of a [`PanelBlock`].
pub(crate) const PANEL_BLOCK: usize = PANEL_ROWS * BLOCK;

/// The order in which a matrix is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Row by row, as in GGUF files.
    #[default]
    Plain,
    /// In panels of [`PANEL_ROWS`] rows; Q4_K alone.
    Panels,
}

impl Layout {
    /// The name in files and flags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Layout::Plain => "plain",
            Layout::Panels => "panels",
        }
    }

    /// This order if matrices of `rows` rows of type `ty` can be stored so, else the plain one.
    #[must_use]
    pub fn of(self, ty: GgmlType, rows: u64) -> Self {
        if self.fits(ty, rows) {
            self
        } else {
            Layout::Plain
        }
    }

    /// Whether matrices of `rows` rows of type `ty` can be stored so.
    #[must_use]
    pub fn fits(self, ty: GgmlType, rows: u64) -> bool {
        match self {
            Layout::Plain => true,
            Layout::Panels => ty == GgmlType::Q4K && rows.is_multiple_of(PANEL_ROWS as u64),
        }
    }
}

/// Text that is not the name of a [`Layout`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid order of weights {0:?}: expected plain or panels")]
pub struct UnknownLayout(String);

impl FromStr for Layout {
    type Err = UnknownLayout;

    fn from_str(text: &str) -> Result<Self, UnknownLayout> {
        [Layout::Plain, Layout::Panels]
            .into_iter()
            .find(|layout| layout.name() == text)
            .ok_or_else(|| UnknownLayout(text.chars().take(32).collect()))
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Turns Q4_K rows that follow each other, of `row_bytes` each, into panels.
///
/// # Panics
/// `rows` is not the bytes of whole panels of rows of whole blocks, or `panels` has another length.
pub fn to_panels(rows: &[u8], row_bytes: usize, panels: &mut [u8]) {
    assert_eq!(rows.len(), panels.len(), "bytes of panels");
    assert!(row_bytes.is_multiple_of(BLOCK), "bytes of a row");
    let panel = (PANEL_ROWS * row_bytes).max(1);
    assert!(rows.len().is_multiple_of(panel), "rows of panels");
    for (rows, panel) in rows.chunks_exact(panel).zip(panels.chunks_exact_mut(panel)) {
        to_panel(rows, row_bytes, panel);
    }
}

fn to_panel(rows: &[u8], row_bytes: usize, panel: &mut [u8]) {
    for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
        for (b, block) in row.as_chunks::<BLOCK>().0.iter().enumerate() {
            for (w, word) in block.as_chunks::<4>().0.iter().enumerate() {
                panel[PANEL_BLOCK * b + 4 * (PANEL_ROWS * w + r)..][..4].copy_from_slice(word);
            }
        }
    }
}

/// The block of row `r` of a panel.
///
/// # Panics
/// `r` is not a row of it.
#[inline(always)]
pub(crate) fn block_of_row(panel: &PanelBlock, r: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    for (word, of_rows) in block.as_chunks_mut::<4>().0.iter_mut().zip(panel) {
        *word = of_rows[r];
    }
    block
}

/// The blocks at the start of `bytes`, as far as they are whole.
#[inline(always)]
pub(crate) fn panel_blocks(bytes: &[u8]) -> &[PanelBlock] {
    bytes
        .as_chunks::<4>()
        .0
        .as_chunks::<PANEL_ROWS>()
        .0
        .as_chunks()
        .0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panel_holds_the_words_of_its_rows() {
        let rows: Vec<u8> = (0..4 * PANEL_BLOCK).map(|i| (i % 251) as u8).collect();
        let mut panels = vec![0; rows.len()];
        to_panels(&rows, 2 * BLOCK, &mut panels);
        assert_ne!(rows, panels);
        for (r, row) in rows.chunks_exact(2 * BLOCK).enumerate() {
            let panel = &panel_blocks(&panels)[r / PANEL_ROWS * 2..];
            for (b, block) in row.chunks_exact(BLOCK).enumerate() {
                assert_eq!(block_of_row(&panel[b], r % PANEL_ROWS), block);
            }
        }
    }

    #[test]
    fn panels_are_for_whole_sixteens_of_q4_k_rows() {
        assert!(Layout::Panels.fits(GgmlType::Q4K, 32));
        assert!(!Layout::Panels.fits(GgmlType::Q4K, 24));
        assert!(!Layout::Panels.fits(GgmlType::Q2K, 32));
        assert!(Layout::Plain.fits(GgmlType::Q2K, 5));
    }
}
