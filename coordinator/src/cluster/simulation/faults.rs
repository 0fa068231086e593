//! What goes wrong with nodes, and how it ends.

use std::sync::Arc;
use std::time::Duration;

use ds4_common::tiles::Holdings;

use super::node::Manners;
use super::world::{Event, World};

const MS: Duration = Duration::from_millis(1);

/// When and to whom something happens.
#[derive(Debug)]
pub(super) struct Faults {
    /// Longest time between two; `None` is peace.
    pub(super) pause: Option<Duration>,
    /// Whether the nodes that are well must hold everything all the time.
    pub(super) gentle: bool,
    /// What a node may hold after a restart, if not the same as before.
    pub(super) others: Vec<Arc<Holdings>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Its process dies and its system says so.
    Kill,
    /// Its machine is gone and nobody says so.
    PowerOff,
    Stop,
    /// The network to one coordinator swallows everything.
    Cut,
    Slow,
    Misbehave,
    /// It finishes what it has, refuses more, and is started again later.
    Drain,
    /// As `Drain`, and it is not named any more until it is started again.
    Leave,
}

impl Trouble {
    pub(super) const KINDS: usize = 8;
    const ALL: [Trouble; Self::KINDS] = [
        Trouble::Kill,
        Trouble::PowerOff,
        Trouble::Stop,
        Trouble::Cut,
        Trouble::Slow,
        Trouble::Misbehave,
        Trouble::Drain,
        Trouble::Leave,
    ];
}

impl World {
    pub(super) fn make_trouble(&mut self) {
        let Some(pause) = self.faults.pause else {
            return;
        };
        let next = self.random.between(pause / 50, pause);
        self.schedule(next, Event::Trouble);
        let node = self.random.index(self.nodes.len());
        let trouble = self.random.pick(&Trouble::ALL);
        let free = self.nodes[node].is_well();
        if !free || (self.faults.gentle && !self.is_covered_without(node)) {
            return;
        }
        self.tally.troubles[trouble as usize] += 1;
        self.nodes[node].troubles += 1;
        self.begin(node, trouble);
        let troubles = self.nodes[node].troubles;
        let after = self.random.between(5 * MS, 8000 * MS);
        self.schedule(
            after,
            Event::Heal {
                node,
                troubles,
                trouble,
            },
        );
    }

    fn begin(&mut self, node: usize, trouble: Trouble) {
        match trouble {
            Trouble::Kill | Trouble::PowerOff => {
                self.nodes[node].alive = false;
                self.disconnect(node, trouble == Trouble::Kill);
            }
            Trouble::Stop => {
                self.nodes[node].stopped = true;
                self.disconnect(node, false);
            }
            Trouble::Cut => {
                let all: Vec<usize> = self.wires_of(node).collect();
                let wire = self.random.pick(&all);
                self.wires[wire].cut = true;
                self.disconnect(node, false);
            }
            Trouble::Slow => self.nodes[node].slow = 2 << self.random.below(9),
            Trouble::Misbehave => self.nodes[node].manners = self.random.pick(&Manners::BAD),
            Trouble::Drain => self.nodes[node].draining = true,
            Trouble::Leave => {
                self.nodes[node].draining = true;
                for wire in self.wires_of(node).collect::<Vec<_>>() {
                    if let Some(entry) = self.wires[wire].entry {
                        self.tables[self.wires[wire].coordinator].list(entry, false);
                    }
                }
            }
        }
    }

    pub(super) fn wires_of(&self, node: usize) -> impl Iterator<Item = usize> {
        let all = self.wires.iter().enumerate();
        all.filter(move |(_, w)| w.node == node).map(|(i, _)| i)
    }

    pub(super) fn heal(&mut self, node: usize, trouble: Trouble) {
        self.nodes[node].troubles += 1;
        let now = self.now();
        let restarts = matches!(
            trouble,
            Trouble::Kill | Trouble::PowerOff | Trouble::Drain | Trouble::Leave
        );
        if restarts {
            self.nodes[node].process += 1;
            // The old process's connections are unknown to the new one.
            self.disconnect(node, true);
            if !self.faults.gentle && !self.faults.others.is_empty() && self.random.chance(50) {
                let at = self.random.index(self.faults.others.len());
                self.nodes[node].held = Arc::clone(&self.faults.others[at]);
            }
        }
        self.nodes[node].recover(now);
        for wire in self.wires_of(node).collect::<Vec<_>>() {
            self.wires[wire].cut = false;
            self.release(wire);
            if trouble == Trouble::Leave {
                self.name_again(wire);
            }
        }
    }

    /// Ends all troubles, for good.
    pub(super) fn make_peace(&mut self) {
        self.faults.pause = None;
        self.lost_percent = 0;
        for node in 0..self.nodes.len() {
            if !self.nodes[node].is_well() || self.wires_of(node).any(|w| self.wires[w].cut) {
                let unnamed = self.wires_of(node).any(|w| self.wires[w].entry.is_none());
                // A restart is the end of every trouble.
                let how = match unnamed || self.nodes[node].draining {
                    true => Trouble::Leave,
                    false => Trouble::Kill,
                };
                self.heal(node, how);
            }
        }
    }
}
