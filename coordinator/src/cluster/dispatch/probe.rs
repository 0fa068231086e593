//! Small calls to nodes that fell out of favour, to learn when they have recovered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_common::expert::ExpertBatch;
use ds4_common::tiles::{Grid, Span, TileRect, TileSet};
use ds4_proto::wire::EncodedBatch;

use super::piece::products;
use super::{Dispatcher, counters};
#[cfg(test)]
use crate::cluster::fabric::NodeId;
use crate::cluster::fabric::{Call, CallId, Forgotten, ViewNode};

/// A node that has no answer by then is to drop the probe.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// Tokens of a batch that are looked at for one that a node has experts of.
const TOKENS_TRIED: usize = 16;

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
    #[cfg(test)]
    pub(super) fn products_of(&self, node: NodeId) -> u64 {
        let open = self.open.values().filter(|probe| probe.node.id == node);
        open.map(|probe| probe.products).sum()
    }

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
            match small_work(self.settings.shape.grid, batch, &node) {
                None => self.router().not_probed(node.id),
                Some((token, tiles)) => {
                    if !self.send_probe(batch, token, tiles, &node, now) {
                        self.router().probed(node.id, now);
                    }
                }
            }
        }
    }

    /// Returns whether the probe is on its way.
    fn send_probe(
        &self,
        batch: &ExpertBatch,
        token: usize,
        tiles: TileSet,
        node: &ViewNode,
        now: Instant,
    ) -> bool {
        let tokens = token..token + 1;
        let products = products(batch, tokens.clone(), tiles.rects());
        let rows = batch.reply_rows(tokens.clone(), tiles.rects());
        // Until the probe is in the list its answer must not be looked for.
        let mut probes = self.probes();
        probes.last += 1;
        let slot = probes.last;
        let sent = node.link.send(Call {
            encoded: EncodedBatch::new(batch, tokens),
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

/// A token of `batch` and one block of what the node holds that make a row together.
fn small_work(grid: Grid, batch: &ExpertBatch, node: &ViewNode) -> Option<(usize, TileSet)> {
    let held = node.held.rects(batch.layer).iter();
    let (token, rect) = held
        .map(|rect| TileRect {
            blocks: Span::new(rect.blocks.start, rect.blocks.start + 1),
            ..*rect
        })
        .find_map(|rect| {
            let has_row = |token: &usize| batch.reply_rows(*token..token + 1, &[rect]) > 0;
            let token = (0..batch.tokens.min(TOKENS_TRIED)).find(has_row)?;
            Some((token, rect))
        })?;
    Some((token, TileSet::new(grid, vec![rect]).ok()?))
}
