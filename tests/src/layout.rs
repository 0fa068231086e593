//! Which node holds which tiles, as values of the flag `--tiles`.

use anyhow::Result;
use ds4_common::tiles::{Grid, TileRect};

/// For each node one rectangle of a grid that is cut into `cut` (expert groups, block strips), and
/// the rectangles of its next `replicas - 1` neighbours. Any `replicas - 1` nodes can be lost.
///
/// # Errors
/// The grid has fewer experts or blocks than `cut`.
pub fn ring(grid: Grid, cut: (u32, u32), replicas: usize) -> Result<Vec<String>> {
    let parts: Vec<String> = grid.cut(cut.0, cut.1)?.iter().map(flag).collect();
    let held = |node: usize| -> String {
        let mine = (0..replicas).map(|next| parts[(node + next) % parts.len()].as_str());
        mine.collect::<Vec<_>>().join("+")
    };
    Ok((0..parts.len()).map(held).collect())
}

fn flag(rect: &TileRect) -> String {
    format!("experts={},blocks={}", rect.experts, rect.blocks)
}
