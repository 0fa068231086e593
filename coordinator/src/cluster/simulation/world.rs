//! Everything outside of the dispatchers: time, network, nodes, and their troubles.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ds4_common::tiles::TileSet;
use tokio::sync::mpsc;

use super::clock::SimClock;
use super::node::{SimNode, Unanswered};
use super::random::Random;
use super::trouble::{Faults, Trouble};
use super::wire::{FIRST_BACKOFF, LAST_BACKOFF, Parcel, Up, Wire};
use crate::cluster::link::calls::ConnectionCalls;
use crate::cluster::membership::NodeTable;
use crate::cluster::node_metrics::NodeMetrics;
use crate::cluster::scripted::{GRID, SHAPE};
use crate::cluster::tile_assignment::uncovered;
use crate::cluster::transport::{CallReply, Mailbox};

const MS: Duration = Duration::from_millis(1);

/// Silence after which a connection is considered dead: ping interval plus timeout.
const SILENCE: Duration = Duration::from_secs(3);

/// ConnectionCalls on the wire that a node takes at once.
pub(super) const WINDOW: usize = 8;

/// Most looks at a mailbox in a row without time passing: more would be a busy loop.
const MAX_IDLE_LOOKS: usize = 1000;

#[derive(Debug)]
pub(super) enum WorldEvent {
    Parcel {
        wire: usize,
        generation: u64,
        parcel: Parcel,
    },
    /// The coordinator sees the end of a connection.
    Broken {
        wire: usize,
        generation: u64,
        reason: &'static str,
    },
    /// No ping was answered, unless the node can be reached again.
    Silence {
        wire: usize,
        generation: u64,
    },
    Connect {
        wire: usize,
    },
    /// A trouble begins at some node.
    Trouble,
    /// A node's trouble ends.
    Heal {
        node: usize,
        troubles: u64,
        trouble: Trouble,
    },
}

/// Counts of what happened, so that a simulation in which nothing happens is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) messages: u64,
    pub(super) connections: u64,
    pub(super) troubles: [u64; Trouble::KINDS],
    pub(super) broken_rules: u64,
    pub(super) unwanted_answers: u64,
    pub(super) fallback_blocks: u64,
    pub(super) flipped_bits: u64,
    pub(super) corrupt_calls: u64,
    pub(super) wrong_rows: u64,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) clock: Arc<SimClock>,
    pub(super) random: Random,
    events: BTreeMap<(Duration, u64), WorldEvent>,
    sequence: u64,
    pub(super) nodes: Vec<SimNode>,
    pub(super) wires: Vec<Wire>,
    pub(super) tables: Vec<Arc<NodeTable>>,
    pub(super) faults: Faults,
    pub(super) tally: Tally,
    /// Longest delay of a message.
    pub(super) delay: Duration,
    /// Percentage of messages that the network has to retransmit.
    pub(super) lost_percent: u64,
    /// Messages in a thousand of which a bit is flipped.
    pub(super) flipped_per_mille: u64,
    idle_looks: usize,
}

impl World {
    pub(super) fn new(
        clock: Arc<SimClock>,
        random: Random,
        nodes: Vec<SimNode>,
        tables: Vec<Arc<NodeTable>>,
        faults: Faults,
    ) -> Self {
        let wires = (0..tables.len()).flat_map(|c| (0..nodes.len()).map(move |n| Wire::new(c, n)));
        let mut world = World {
            clock,
            random,
            events: BTreeMap::new(),
            sequence: 0,
            wires: wires.collect(),
            nodes,
            tables,
            faults,
            tally: Tally::default(),
            delay: MS,
            lost_percent: 0,
            flipped_per_mille: 0,
            idle_looks: 0,
        };
        for wire in 0..world.wires.len() {
            world.name(wire);
            world.schedule(Duration::ZERO, WorldEvent::Connect { wire });
        }
        world
    }

    pub(super) fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    pub(super) fn schedule(&mut self, after: Duration, event: WorldEvent) {
        let at = self.now() + after;
        self.schedule_at(at, event);
    }

    pub(super) fn schedule_at(&mut self, at: Duration, event: WorldEvent) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    /// Adds the node to a coordinator's table.
    fn name(&mut self, wire: usize) {
        let Wire {
            coordinator, node, ..
        } = self.wires[wire];
        let name = format!("node-{node}");
        let metrics = Arc::new(NodeMetrics::new(&name));
        self.wires[wire].entry = Some(self.tables[coordinator].add(name.into(), metrics));
    }

    /// Lets time pass until there is a reply in the mailbox, or until `until`.
    pub(super) fn run(&mut self, until: Duration, mailbox: Option<&Mailbox>) -> Option<CallReply> {
        let begun = self.now();
        loop {
            self.collect();
            if let Some(reply) = mailbox.and_then(Mailbox::take) {
                self.idle_looks = 0;
                return Some(reply);
            }
            match self.events.first_entry().filter(|e| e.key().0 <= until) {
                None => break,
                Some(entry) => {
                    let ((at, _), event) = entry.remove_entry();
                    self.clock.set(at);
                    self.happen(event);
                }
            }
        }
        self.clock.set(until);
        self.idle_looks = match self.now() > begun {
            true => 0,
            false => self.idle_looks + 1,
        };
        assert!(
            self.idle_looks < MAX_IDLE_LOOKS,
            "the dispatcher is in a busy loop"
        );
        None
    }

    fn happen(&mut self, event: WorldEvent) {
        match event {
            WorldEvent::Parcel {
                wire,
                generation,
                parcel,
            } => self.deliver(wire, generation, parcel),
            WorldEvent::Broken {
                wire,
                generation,
                reason,
            } => {
                if self.wires[wire].generation == generation {
                    self.end(wire, reason, false);
                }
            }
            WorldEvent::Silence { wire, generation } => {
                let Wire { node, cut, .. } = self.wires[wire];
                let node = &self.nodes[node];
                if self.wires[wire].generation == generation && (cut || node.stopped || !node.alive)
                {
                    self.end(wire, "no ping was answered", false);
                }
            }
            WorldEvent::Connect { wire } => self.connect(wire),
            WorldEvent::Trouble => self.make_trouble(),
            WorldEvent::Heal {
                node,
                troubles,
                trouble,
            } => {
                if self.nodes[node].troubles == troubles {
                    self.heal(node, trouble);
                }
            }
        }
    }

    /// Ends a connection, in the order in which the link's task does.
    pub(super) fn end(&mut self, index: usize, reason: &str, stopping: bool) {
        let wire = &mut self.wires[index];
        let Some(up) = wire.up.take() else { return };
        wire.generation += 1;
        wire.held_back.clear();
        if up.calls.was_useful() {
            wire.backoff = FIRST_BACKOFF;
        }
        let table = &self.tables[wire.coordinator];
        let Some(entry) = wire.entry else { return };
        table.absent(entry, reason.to_owned());
        up.calls.close(reason);
        if stopping {
            table.draining(entry);
        }
        if table.forget_unlisted(entry) {
            wire.entry = None;
            return;
        }
        let pause = wire.backoff;
        wire.backoff = (wire.backoff * 2).min(LAST_BACKOFF);
        self.schedule(pause, WorldEvent::Connect { wire: index });
    }

    fn connect(&mut self, index: usize) {
        let wire = &mut self.wires[index];
        let node = &self.nodes[wire.node];
        let (Some(entry), None) = (wire.entry, &wire.up) else {
            return;
        };
        if !node.alive || node.stopped || node.draining || wire.cut {
            let pause = wire.backoff;
            wire.backoff = (wire.backoff * 2).min(LAST_BACKOFF);
            let table = &self.tables[wire.coordinator];
            table.absent(entry, "connection refused".to_owned());
            if table.forget_unlisted(entry) {
                wire.entry = None;
                return;
            }
            self.schedule(pause, WorldEvent::Connect { wire: index });
            return;
        }
        let (outbound, received) = mpsc::channel(64);
        let metrics = Arc::new(NodeMetrics::new("node"));
        let clock = Arc::clone(&self.clock);
        let calls = Arc::new(ConnectionCalls::new(metrics, clock, outbound, WINDOW));
        let now = self.clock.elapsed();
        wire.generation += 1;
        wire.up = Some(Up {
            calls: Arc::clone(&calls),
            process: node.process,
            outbound: received,
            last_out: now,
            last_in: now,
            unanswered: Unanswered::default(),
        });
        self.tally.connections += 1;
        self.tables[wire.coordinator].up(entry, Arc::clone(&node.held), calls, 0);
    }

    /// Whether the nodes that are well, except `but`, hold all tiles.
    pub(super) fn is_covered_without(&self, but: usize) -> bool {
        let well = |n: usize| {
            let connected = |w: &Wire| w.node != n || (w.up.is_some() && !w.cut);
            n != but && self.nodes[n].is_well() && self.wires.iter().all(connected)
        };
        self.cover(&well)
    }

    /// Whether all nodes together hold all tiles.
    pub(super) fn holds_everything(&self) -> bool {
        self.cover(&|_| true)
    }

    /// Largest number of unanswered calls on one connection.
    pub(super) fn most_unanswered(&self) -> usize {
        let up = self.wires.iter().filter_map(|w| w.up.as_ref());
        up.map(|up| up.calls.unanswered()).max().unwrap_or(0)
    }

    fn cover(&self, counts: &dyn Fn(usize) -> bool) -> bool {
        let nodes: Vec<usize> = (0..self.nodes.len()).filter(|&n| counts(n)).collect();
        (0..SHAPE.layers).all(|layer| {
            let held = |&n: &usize| self.nodes[n].held.layer(layer).map(AsRef::as_ref);
            let held: Vec<Option<&TileSet>> = nodes.iter().map(held).collect();
            uncovered(GRID, &held).is_empty()
        })
    }

    /// Breaks all connections of a node: at once if they are reset (`told`), else after silence.
    pub(super) fn disconnect(&mut self, node: usize, told: bool) {
        for wire in 0..self.wires.len() {
            let generation = self.wires[wire].generation;
            if self.wires[wire].node != node || self.wires[wire].up.is_none() {
                continue;
            }
            if told {
                let (after, reason) = (self.transit(), "connection reset");
                self.schedule(
                    after,
                    WorldEvent::Broken {
                        wire,
                        generation,
                        reason,
                    },
                );
            } else {
                self.schedule(SILENCE, WorldEvent::Silence { wire, generation });
            }
        }
    }

    /// Sends the messages that were held back.
    pub(super) fn release(&mut self, wire: usize) {
        for (generation, parcel) in std::mem::take(&mut self.wires[wire].held_back) {
            self.schedule(
                Duration::ZERO,
                WorldEvent::Parcel {
                    wire,
                    generation,
                    parcel,
                },
            );
        }
    }

    /// Names a node that had left.
    pub(super) fn name_again(&mut self, wire: usize) {
        match self.wires[wire].entry {
            Some(entry) if self.tables[self.wires[wire].coordinator].list(entry, true) => {}
            _ => {
                self.name(wire);
                self.schedule(Duration::ZERO, WorldEvent::Connect { wire });
            }
        }
    }
}
