//! Scripted experts behind real nodes, able to misbehave.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ds4_common::expert::{BatchError, ExpertBatch};
use ds4_common::tiles::{Grid, TileRect};
use ds4_expert_node::compute::Compute;

use crate::cluster::OwnExperts;
use crate::cluster::scripted::{GRID, rows};
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
        *out = rows(GRID, &batch.part(tokens), &[rect]).0;
        Ok(())
    }
}
