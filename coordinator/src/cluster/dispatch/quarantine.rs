//! Nodes that computed wrong numbers: who they are, and what lets them return.
//!
//! A quarantine belongs to a node's name, so that it outlives a connection. A node in quarantine is
//! asked nothing until its term is over. Then it computes the call at which it failed again, and
//! returns when it gets that right several times in a row. The term doubles with each relapse.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_common::expert::ExpertBatch;
use ds4_common::tiles::{TileRect, TileSet};

use crate::cluster::transport::{ClusterView, LiveNode, NodeId};

/// Right answers in a row after which a node returns.
const PASSES: u32 = 3;

/// The longest term, as a multiple of the first.
const LONGEST: u32 = 64;

/// The call at which a node failed, and the digest of the right rows.
#[derive(Debug)]
pub(super) struct ReturnTest {
    pub(super) batch: Arc<ExpertBatch>,
    pub(super) tiles: Arc<TileSet>,
    pub(super) digest: u64,
}

impl ReturnTest {
    fn is_held_by(&self, node: &LiveNode) -> bool {
        let held = node.held.layer(self.batch.layer);
        let holds = |rect: &TileRect| held.is_some_and(|set| set.rect_around(*rect).is_some());
        self.tiles.rects().iter().all(holds)
    }
}

#[derive(Debug)]
struct Record {
    /// The connection over which the wrong numbers came.
    connection: NodeId,
    until: Instant,
    term: Duration,
    /// Right answers in a row since `until`.
    passes: u32,
    /// `None` where it is not known what is right. Then, and where the node has come to hold other
    /// tiles, another connection ends the quarantine, over which the known calls are computed.
    test: Option<Arc<ReturnTest>>,
    /// Over, but not forgotten.
    served: bool,
}

/// All quarantines, by the name of the node.
#[derive(Debug)]
pub(super) struct Quarantines {
    first_term: Duration,
    records: BTreeMap<Arc<str>, Record>,
}

impl Quarantines {
    pub(super) fn new(first_term: Duration) -> Self {
        Quarantines {
            first_term,
            records: BTreeMap::new(),
        }
    }

    /// Begins or lengthens a node's quarantine. Returns its end.
    pub(super) fn begin(
        &mut self,
        node: &LiveNode,
        test: Option<Arc<ReturnTest>>,
        now: Instant,
    ) -> Instant {
        let last = self.records.get(&node.name).map(|record| record.term);
        let longest = self.first_term * LONGEST;
        let term = last.map_or(self.first_term, |term| (term * 2).min(longest));
        let record = Record {
            connection: node.id,
            until: now + term,
            term,
            passes: 0,
            test,
            served: false,
        };
        self.records.insert(Arc::clone(&node.name), record);
        now + term
    }

    /// When the quarantine of this node may end, if it is in one.
    pub(super) fn until(&self, node: &LiveNode) -> Option<Instant> {
        let record = self
            .records
            .get(&node.name)
            .filter(|record| !record.served)?;
        Some(record.until)
    }

    /// What the node has to compute to return.
    pub(super) fn test(&self, node: &LiveNode) -> Option<Arc<ReturnTest>> {
        self.records.get(&node.name)?.test.clone()
    }

    /// The node answered its test. Returns whether it returns, or else when it is asked next.
    pub(super) fn answered(&mut self, node: &LiveNode, right: bool, now: Instant) -> Answered {
        let longest = self.first_term * LONGEST;
        let Some(record) = self.records.get_mut(&node.name) else {
            return Answered::Returns;
        };
        if !right {
            record.passes = 0;
            record.term = (record.term * 2).min(longest);
            record.until = now + record.term;
            return Answered::Wrong(record.until);
        }
        record.passes += 1;
        record.served = record.passes >= PASSES;
        match record.served {
            true => Answered::Returns,
            false => Answered::Again,
        }
    }

    /// Adopts a snapshot of the cluster: nodes that are no longer named are forgotten.
    pub(super) fn update_view(&mut self, view: &ClusterView) {
        let absent = view.absent.iter().map(|(name, _)| name);
        let live = view.nodes.iter().map(|node| &node.name);
        let named: Vec<&Arc<str>> = absent.chain(live).collect();
        self.records.retain(|name, _| named.contains(&name));
        for node in &view.nodes {
            if let Some(record) = self.records.get_mut(&node.name)
                && record.connection != node.id
                && !record
                    .test
                    .as_ref()
                    .is_some_and(|test| test.is_held_by(node))
            {
                record.served = true;
            }
        }
    }
}

/// What follows from an answer to a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// The quarantine is over.
    Returns,
    /// Right, but not often enough.
    Again,
    /// Still wrong: the quarantine is longer, and lasts until then.
    Wrong(Instant),
}

#[cfg(test)]
mod tests {
    use super::*;
    use ds4_common::tiles::Holdings;

    use crate::cluster::scripted::{GRID, SHAPE, batch};
    use crate::cluster::transport::{CallError, CallId, CancelReason, ExpertCall, NodeLink};

    const TERM: Duration = Duration::from_secs(60);

    #[derive(Debug)]
    struct Nowhere;

    impl NodeLink for Nowhere {
        fn send(&self, _: ExpertCall) -> Result<CallId, CallError> {
            Err(CallError::Busy)
        }

        fn cancel(&self, _: CallId, _: CancelReason) {}
    }

    fn node(id: u64) -> LiveNode {
        let whole = TileSet::whole(GRID);
        LiveNode {
            id: NodeId(id),
            name: "node-1".into(),
            held: Arc::new(Holdings::uniform(GRID, SHAPE.layers, whole)),
            link: Arc::new(Nowhere),
        }
    }

    fn test() -> Option<Arc<ReturnTest>> {
        Some(Arc::new(ReturnTest {
            batch: batch(0, 1),
            tiles: Arc::new(TileSet::whole(GRID)),
            digest: 7,
        }))
    }

    fn view(nodes: Vec<LiveNode>) -> ClusterView {
        ClusterView {
            epoch: 1,
            nodes,
            absent: Vec::new(),
        }
    }

    #[test]
    fn a_node_returns_after_three_right_answers_and_stays_longer_each_time() {
        let (start, node) = (Instant::now(), node(1));
        let mut quarantines = Quarantines::new(TERM);
        assert_eq!(quarantines.until(&node), None);
        let mut term = TERM;
        for round in 0..9 {
            let until = quarantines.begin(&node, test(), start);
            assert_eq!(until, start + term, "round {round}");
            term = (term * 2).min(TERM * LONGEST);
            assert_eq!(quarantines.answered(&node, true, until), Answered::Again);
            let longer = quarantines.answered(&node, false, until);
            assert_eq!(longer, Answered::Wrong(until + term), "round {round}");
            term = (term * 2).min(TERM * LONGEST);
            for expected in [Answered::Again, Answered::Again, Answered::Returns] {
                assert!(quarantines.until(&node).is_some());
                assert_eq!(quarantines.answered(&node, true, until), expected);
            }
            assert_eq!(quarantines.until(&node), None, "round {round}");
        }
    }

    #[test]
    fn a_quarantine_outlives_a_connection_if_there_is_a_test() {
        let (start, first, second) = (Instant::now(), node(1), node(2));
        for (test, stays) in [(test(), true), (None, false)] {
            let mut quarantines = Quarantines::new(TERM);
            quarantines.begin(&first, test, start);
            quarantines.update_view(&view(vec![first.clone()]));
            assert!(quarantines.until(&first).is_some());
            quarantines.update_view(&view(vec![second.clone()]));
            assert_eq!(quarantines.until(&second).is_some(), stays);
            quarantines.update_view(&view(Vec::new()));
            assert!(quarantines.until(&second).is_none(), "it is not named");
        }
    }
}
