//! Small calls to nodes that fell out of favour, to learn when they have recovered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_common::expert::ExpertBatch;
use ds4_common::tiles::{Span, TileRect, TileSet};
use ds4_proto::wire::EncodedBatch;

use super::piece::products;
use super::{Dispatcher, counters};
use crate::cluster::combine::count_rows;
use crate::cluster::fabric::{Call, CallId, Forgotten, ViewNode};

/// A node that has no answer by then is to drop the probe.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// Probes without an answer, by slot: at most one a connection.
#[derive(Debug, Default)]
pub(super) struct Probes {
    open: BTreeMap<u64, Probe>,
    last: u64,
}

#[derive(Debug)]
struct Probe {
    node: ViewNode,
    call: CallId,
    sent: Instant,
    products: u64,
}

impl Probes {
    fn take_overdue(&mut self, now: Instant) -> Vec<Probe> {
        let overdue = |_: &u64, probe: &mut Probe| now >= probe.sent + PROBE_DEADLINE;
        let taken = self.open.extract_if(.., overdue);
        taken.map(|(_, probe)| probe).collect()
    }
}

impl Dispatcher {
    /// Reads the answers to earlier probes, and sends those that are due: one token of `batch`,
    /// one block of what the node holds.
    pub(super) fn probe(&self, batch: &ExpertBatch) {
        let now = self.fabric.now();
        while let Some(arrival) = self.probe_answers.take() {
            let Some(probe) = self.probes().open.remove(&arrival.slot) else {
                continue;
            };
            counters::probe(arrival.rows.is_ok());
            let mut router = self.router();
            router.probed(probe.node.id, now);
            if arrival.rows.is_ok() {
                let took = arrival.at.saturating_duration_since(probe.sent);
                router.answered(probe.node.id, probe.products, took, now);
            } else {
                router.ended(probe.node.id, probe.products);
            }
        }
        let overdue = self.probes().take_overdue(now);
        for probe in overdue {
            counters::probe(false);
            probe.node.link.cancel(probe.call, Forgotten::Late);
            let mut router = self.router();
            router.probed(probe.node.id, now);
            router.ended(probe.node.id, probe.products);
        }
        let due = self.router().due_probes(now);
        for node in due {
            if !self.send_probe(batch, &node, now) {
                self.router().probed(node.id, now);
            }
        }
    }

    /// Returns whether the probe is on its way.
    fn send_probe(&self, batch: &ExpertBatch, node: &ViewNode, now: Instant) -> bool {
        let grid = self.settings.shape.grid;
        let held = node.held.rects(batch.layer).iter();
        let rect = held
            .map(|rect| {
                let blocks = Span::new(rect.blocks.start, rect.blocks.start + 1);
                TileRect { blocks, ..*rect }
            })
            .find(|rect| count_rows(grid, batch, 0..1, &[*rect]) > 0);
        let Some(tiles) = rect.and_then(|rect| TileSet::new(grid, vec![rect]).ok()) else {
            return false;
        };
        let products = products(batch, 0..1, tiles.rects());
        let rows = count_rows(grid, batch, 0..1, tiles.rects());
        // Until the probe is in the list its answer must not be looked for.
        let mut probes = self.probes();
        probes.last += 1;
        let slot = probes.last;
        let sent = node.link.send(Call {
            encoded: EncodedBatch::new(batch, 0..1),
            tiles: Arc::new(tiles),
            expected: rows * self.settings.shape.row_bytes(),
            deadline: now + PROBE_DEADLINE,
            slot,
            to: self.probe_answers.clone(),
        });
        let Ok(call) = sent else {
            return false;
        };
        let probe = Probe {
            node: node.clone(),
            call,
            sent: now,
            products,
        };
        probes.open.insert(slot, probe);
        drop(probes);
        self.router().sent(node.id, products);
        true
    }
}
