//! Scripted experts for tests: cheap to compute, summed by the canonical tree, with values that
//! reveal any other order of addition.

use std::sync::Arc;

use ds4_common::expert::{BatchFields, ExpertBatch, ExpertInput, MoeShape, Route};
use ds4_common::tiles::{Grid, Subtree, TileRect, fold_axis};

pub(super) const GRID: Grid = Grid {
    experts: 6,
    blocks: 3,
};
pub(super) const SHAPE: MoeShape = MoeShape {
    layers: 4,
    hidden: 8,
    experts_used: 3,
    grid: GRID,
};
pub(super) const FINGERPRINT: [u8; 32] = [5; 32];

/// A batch whose values differ between tokens and calls.
pub(super) fn batch(layer: usize, tokens: usize) -> Arc<ExpertBatch> {
    let experts_used = SHAPE.experts_used;
    let mut state = (layer * 1000 + tokens) as u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let routes = (0..tokens)
        .flat_map(|_| {
            let first = next() % GRID.experts;
            let weight = (next() % 1000) as f32 / 700.0;
            // Different experts of a token, not in ascending order.
            (0..experts_used as u32).map(move |slot| Route {
                expert: (first + slot * 5) % GRID.experts,
                weight: weight + slot as f32,
            })
        })
        .collect();
    let input = (0..tokens * SHAPE.hidden)
        .map(|_| next() as f32 / 9e6 - 0.9)
        .collect();
    let fields = BatchFields {
        layer,
        tokens,
        routes,
        input: ExpertInput::F32(input),
        round: true,
    };
    Arc::new(ExpertBatch::new(SHAPE, fields).expect("a legal batch"))
}

/// The rows of the whole grid, computed in one piece.
pub(super) fn alone(batch: &ExpertBatch) -> Vec<f32> {
    rows(GRID, batch, &[GRID.whole()]).0
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The rows of `rects` and the number of leaves in them.
pub(super) fn rows(grid: Grid, batch: &ExpertBatch, rects: &[TileRect]) -> (Vec<f32>, u64) {
    let mut out = Vec::new();
    let mut leaves = 0;
    for tree in rects.iter().flat_map(|rect| rect.subtrees(grid)) {
        for token in batch.rows_of(0..batch.tokens, tree) {
            out.extend(row(grid, batch, token, tree, &mut leaves));
        }
    }
    (out, leaves)
}

fn row(grid: Grid, batch: &ExpertBatch, token: usize, tree: Subtree, leaves: &mut u64) -> Vec<f32> {
    let ExpertInput::F32(values) = &batch.input else {
        panic!("the script reads floats");
    };
    let hidden = values.len() / batch.tokens;
    let input = &values[token * hidden..(token + 1) * hidden];
    let mut chosen: Vec<Route> = batch.routes_of(token).to_vec();
    chosen.retain(|route| tree.experts.contains(route.expert));
    chosen.sort_by_key(|route| route.expert);
    let experts: Vec<u32> = chosen.iter().map(|route| route.expert).collect();
    let blocks: Vec<u32> = (tree.blocks.start..tree.blocks.end).collect();
    let by_block = blocks.iter().map(|&block| {
        *leaves += chosen.len() as u64;
        let parts = chosen
            .iter()
            .map(|route| leaf(batch.layer, block, *route, input))
            .collect();
        fold(grid.experts, &experts, parts)
    });
    fold(grid.blocks, &blocks, by_block.collect())
}

fn fold(total: u32, positions: &[u32], mut rows: Vec<Vec<f32>>) -> Vec<f32> {
    fold_axis(total, positions, &mut |into, from| {
        let from = rows[from].clone();
        for (a, b) in rows[into].iter_mut().zip(from) {
            *a += b;
        }
    });
    rows.swap_remove(0)
}

/// Values of very different size, so that another order of addition gives other bits.
fn leaf(layer: usize, block: u32, route: Route, input: &[f32]) -> Vec<f32> {
    let scale = [1e-3, 7.0, 31_000.0][((route.expert + block) % 3) as usize];
    let shift = (layer as u32 * 31 + block * 7 + route.expert) as f32;
    input
        .iter()
        .map(|x| (x * 3.1 + shift) * scale * route.weight)
        .collect()
}
