//! Scripted experts that keep to the canonical tree.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ds4_common::expert::{BatchError, ExpertBatch, ExpertInput, Route};
use ds4_common::tiles::{Grid, Subtree, TileRect, fold_axis};
use ds4_expert_node::compute::Compute;

use crate::cluster::OwnExperts;
use crate::engine::ExpertError;

/// What a test turns while nodes run.
#[derive(Debug, Default)]
pub(super) struct Knobs {
    /// Milliseconds that each call takes.
    pub(super) delay_ms: AtomicU64,
    /// Calls that were begun.
    pub(super) begun: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Script {
    pub(super) grid: Grid,
    pub(super) knobs: [Arc<Knobs>; 2],
}

impl Compute for Script {
    fn compute(
        &mut self,
        batch: &ExpertBatch,
        rects: &[TileRect],
        out: &mut Vec<f32>,
    ) -> Result<u64, BatchError> {
        for knobs in &self.knobs {
            knobs.begun.fetch_add(1, Ordering::SeqCst);
        }
        let begun = Instant::now();
        // Looked at again and again, so that a node that hangs can be let go.
        let delays = |knobs: &Arc<Knobs>| {
            let delay = Duration::from_millis(knobs.delay_ms.load(Ordering::SeqCst));
            begun.elapsed() < delay
        };
        while self.knobs.iter().any(delays) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (rows, products) = rows(self.grid, batch, rects);
        *out = rows;
        Ok(products)
    }
}

/// The coordinator's own file, scripted like the nodes.
#[derive(Debug, Default)]
pub(super) struct OwnScript {
    /// Rectangles that were computed.
    pub(super) computed: AtomicU64,
    pub(super) delay_ms: AtomicU64,
}

impl OwnExperts for OwnScript {
    fn compute(
        &self,
        batch: &ExpertBatch,
        tokens: Range<usize>,
        rect: TileRect,
        out: &mut Vec<f32>,
    ) -> Result<(), ExpertError> {
        self.computed.fetch_add(1, Ordering::SeqCst);
        let delay = self.delay_ms.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(delay));
        let grid = crate::cluster::loopback::GRID;
        *out = rows(grid, &batch.part(tokens), &[rect]).0;
        Ok(())
    }
}

/// The rows of `rects` and the number of leaves in them.
pub(super) fn rows(grid: Grid, batch: &ExpertBatch, rects: &[TileRect]) -> (Vec<f32>, u64) {
    let mut out = Vec::new();
    let mut leaves = 0;
    for tree in rects.iter().flat_map(|rect| rect.subtrees(grid)) {
        for token in (0..batch.tokens).filter(|&t| batch.has_row(t, tree)) {
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

/// Values of very different size, so that another order of addition shows.
fn leaf(layer: usize, block: u32, route: Route, input: &[f32]) -> Vec<f32> {
    let scale = [1e-3, 7.0, 31_000.0][((route.expert + block) % 3) as usize];
    let shift = (layer as u32 * 31 + block * 7 + route.expert) as f32;
    input
        .iter()
        .map(|x| (x * 3.1 + shift) * scale * route.weight)
        .collect()
}
