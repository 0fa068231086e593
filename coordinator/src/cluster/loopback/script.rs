//! Scripted experts behind real nodes, with knobs to slow them down.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ds4_common::expert::{BatchError, ExpertBatch};
use ds4_common::tiles::{Grid, TileRect};
use ds4_expert_node::compute::Compute;

use crate::cluster::FallbackExperts;
use crate::cluster::scripted::{GRID, rows};
use crate::engine::ExpertError;

/// Settings that a test changes while nodes run.
#[derive(Debug, Default)]
pub(super) struct Knobs {
    /// Milliseconds that each call takes.
    pub(super) delay_ms: AtomicU64,
    /// Whether the lowest bit of each first float is wrong.
    pub(super) wrong: AtomicBool,
    /// Whether each first float is NaN.
    pub(super) not_finite: AtomicBool,
    /// Number of calls that have been begun.
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
        // The knob is read again and again, so that a test can release a node that hangs.
        let delays = |knobs: &Arc<Knobs>| {
            let delay = Duration::from_millis(knobs.delay_ms.load(Ordering::SeqCst));
            begun.elapsed() < delay
        };
        while self.knobs.iter().any(delays) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (mut rows, expert_block_ops) = rows(self.grid, batch, rects);
        if self.knobs.iter().any(|k| k.wrong.load(Ordering::SeqCst)) {
            rows[0] = f32::from_bits(rows[0].to_bits() ^ 1);
        }
        if self
            .knobs
            .iter()
            .any(|k| k.not_finite.load(Ordering::SeqCst))
        {
            rows[0] = f32::NAN;
        }
        *out = rows;
        Ok(expert_block_ops)
    }
}

/// The local fallback, scripted like the nodes.
#[derive(Debug, Default)]
pub(super) struct FallbackScript {
    /// Number of rectangles that have been computed.
    pub(super) computed: AtomicU64,
    pub(super) delay_ms: AtomicU64,
}

impl FallbackExperts for FallbackScript {
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
