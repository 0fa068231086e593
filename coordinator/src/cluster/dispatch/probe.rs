//! Small calls to nodes that are not healthy, to learn when they have recovered.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_common::expert::ExpertBatch;
use ds4_common::tiles::{Grid, Span, TileRect, TileSet};
use ds4_proto::wire::{EncodedBatch, bytes_from_floats};

use super::quarantine::ReturnTest;
use super::task::expert_block_ops;
use super::{Dispatcher, metrics};
use crate::cluster::known_calls::{digest, random_call};
use crate::cluster::node_metrics::NumberFault;
use crate::cluster::tile_assignment::list;
#[cfg(test)]
use crate::cluster::transport::NodeId;
use crate::cluster::transport::{CallError, CallId, CancelReason, ExpertCall, LiveNode};

/// Time that a node has to answer a probe.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// Number of a batch's tokens that are searched for one with experts that the node holds.
const TOKENS_TRIED: usize = 16;

/// Unanswered probes by tag: at most one for each connection.
#[derive(Debug, Default)]
pub(super) struct Probes {
    open: BTreeMap<u64, OpenProbe>,
    last_tag: u64,
}

#[derive(Debug)]
struct OpenProbe {
    node: LiveNode,
    call: CallId,
    layer: usize,
    /// What the rows must be, of a node in quarantine or of a made-up call.
    expected: Option<Arc<ReturnTest>>,
    sent: Instant,
    expert_block_ops: u64,
}

impl Probes {
    #[cfg(test)]
    pub(super) fn expert_block_ops_of(&self, node: NodeId) -> u64 {
        let open = self.open.values().filter(|probe| probe.node.id == node);
        open.map(|probe| probe.expert_block_ops).sum()
    }

    fn take_overdue(&mut self, now: Instant) -> Vec<OpenProbe> {
        let overdue = |_: &u64, probe: &mut OpenProbe| now >= probe.sent + PROBE_DEADLINE;
        let taken = self.open.extract_if(.., overdue);
        taken.map(|(_, probe)| probe).collect()
    }
}

impl Dispatcher {
    /// Takes the replies to earlier probes, and sends the probes that are due: one token of `batch`
    /// and one block of what the node holds.
    pub(super) fn probe(&self, batch: &ExpertBatch) {
        let now = self.transport.now();
        while let Some(reply) = self.probe_replies.take() {
            let Some(probe) = self.probes().open.remove(&reply.tag) else {
                continue;
            };
            let rows = reply.rows.and_then(|rows| Ok(rows.check()?));
            if let Err(error) = &rows {
                self.note_wrong_numbers(&probe.node, probe.layer, error, now);
            }
            metrics::probe(rows.is_ok());
            let mut selector = self.selector();
            selector.probed(probe.node.id, now);
            // Infinity and NaN are an answer to a test.
            let not_finite = matches!(&rows, Err(CallError::NotFinite(_)));
            let found = rows.as_ref().ok().map(|rows| digest(rows));
            let wrong = probe
                .expected
                .as_ref()
                .filter(|_| found.is_some() || not_finite);
            let quarantined = selector.return_test(&probe.node).is_some();
            let wrong = match wrong {
                Some(test) if quarantined => {
                    selector.tested(&probe.node, found == Some(test.digest), now);
                    None
                }
                other => other.filter(|test| found != Some(test.digest)),
            };
            if rows.is_ok() {
                let took = reply.received.saturating_duration_since(probe.sent);
                selector.answered(probe.node.id, probe.expert_block_ops, took, now);
            } else {
                selector.ended(probe.node.id, probe.expert_block_ops);
            }
            drop(selector);
            if let Some(test) = wrong {
                tracing::error!(
                    node = %probe.node.name, layer = probe.layer,
                    tiles = list(test.tiles.rects()),
                    found = format!("{:016x}", found.unwrap_or_default()),
                    expected = format!("{:016x}", test.digest),
                    "an expert node computed other numbers than the coordinator's own file"
                );
                let test = Some(Arc::clone(test));
                self.quarantine(&probe.node, NumberFault::KnownCall, test, now);
            }
        }
        self.check_made_up_call(now);
        let overdue = self.probes().take_overdue(now);
        for probe in overdue {
            metrics::probe(false);
            probe
                .node
                .link
                .cancel(probe.call, CancelReason::DeadlinePassed);
            let mut selector = self.selector();
            selector.probed(probe.node.id, now);
            selector.ended(probe.node.id, probe.expert_block_ops);
        }
        let due = self.selector().due_probes(now);
        for node in due {
            let test = self.selector().return_test(&node);
            if let Some(test) = test {
                let tiles = Arc::clone(&test.tiles);
                let (batch, tokens) = (Arc::clone(&test.batch), 0..test.batch.tokens);
                if !self.send_probe(&batch, tokens, tiles, Some(test), &node, now) {
                    self.selector().probed(node.id, now);
                }
                continue;
            }
            match small_call(self.settings.shape.grid, batch, &node) {
                None => self.selector().not_probed(node.id),
                Some((token, tiles)) => {
                    let (tokens, tiles) = (token..token + 1, Arc::new(tiles));
                    if !self.send_probe(batch, tokens, tiles, None, &node, now) {
                        self.selector().probed(node.id, now);
                    }
                }
            }
        }
    }

    /// Has a node compute a made-up call and compares the rows with the own file's, as often as calls
    /// are audited: that finds what is wrong with tiles that no token chooses.
    fn check_made_up_call(&self, now: Instant) {
        let Some(own) = self.fallback.as_ref().filter(|_| self.draw_audit()) else {
            return;
        };
        let shape = self.settings.shape;
        let mut draw = self.audit_draw();
        let Some(node) = self.selector().idle_node(&mut draw) else {
            return;
        };
        let call = random_call(&shape, &node.held, &mut draw);
        drop(draw);
        let test = call.and_then(|call| {
            let mut rows = Vec::new();
            let computed = own.compute(&call.batch, 0..1, call.tile, &mut rows);
            computed.ok()?;
            Some(Arc::new(ReturnTest {
                tiles: Arc::new(call.tiles()?),
                digest: digest(&bytes_from_floats(&rows)),
                batch: call.batch,
            }))
        });
        let sent = test.is_some_and(|test| {
            let (batch, tiles) = (Arc::clone(&test.batch), Arc::clone(&test.tiles));
            self.send_probe(&batch, 0..1, tiles, Some(test), &node, now)
        });
        if !sent {
            self.selector().not_probed(node.id);
        }
    }

    /// Returns whether the probe is on its way.
    fn send_probe(
        &self,
        batch: &ExpertBatch,
        tokens: Range<usize>,
        tiles: Arc<TileSet>,
        expected: Option<Arc<ReturnTest>>,
        node: &LiveNode,
        now: Instant,
    ) -> bool {
        let ops = expert_block_ops(batch, tokens.clone(), tiles.rects());
        let rows = batch.reply_rows(tokens.clone(), tiles.rects());
        // Locked until the probe is listed, so that its reply is not looked for before.
        let mut probes = self.probes();
        probes.last_tag += 1;
        let tag = probes.last_tag;
        let sent = node.link.send(ExpertCall {
            encoded: EncodedBatch::new(batch, tokens),
            tiles,
            reply_bytes: rows * self.settings.shape.row_bytes(),
            deadline: now + PROBE_DEADLINE,
            tag,
            reply_to: self.probe_replies.clone(),
        });
        let Ok(call) = sent else {
            return false;
        };
        let probe = OpenProbe {
            node: node.clone(),
            call,
            layer: batch.layer,
            expected,
            sent: now,
            expert_block_ops: ops,
        };
        probes.open.insert(tag, probe);
        drop(probes);
        self.selector().sent(node.id, ops);
        true
    }
}

/// A token of `batch` and one block of what the node holds that have a row together.
fn small_call(grid: Grid, batch: &ExpertBatch, node: &LiveNode) -> Option<(usize, TileSet)> {
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
