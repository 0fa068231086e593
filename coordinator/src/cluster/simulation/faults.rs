//! Makes troubles begin and end.

use std::sync::Arc;
use std::time::Duration;

use super::node::Manners;
use super::trouble::Trouble;
use super::world::{World, WorldEvent};

const MS: Duration = Duration::from_millis(1);

impl World {
    pub(super) fn make_trouble(&mut self) {
        let Some(pause) = self.faults.pause else {
            return;
        };
        let next = self.random.between(pause / 50, pause);
        self.schedule(next, WorldEvent::Trouble);
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
            WorldEvent::Heal {
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
            Trouble::Misbehave => {
                let wrong = self.faults.wrong_numbers && self.random.chance(40);
                self.nodes[node].manners = match wrong {
                    true => Manners::WrongBit,
                    false => self.random.pick(&Manners::BAD),
                };
            }
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
            // The new process does not know the connections of the old one.
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

    /// Ends all troubles for good.
    pub(super) fn make_peace(&mut self) {
        self.faults.pause = None;
        self.lost_percent = 0;
        self.flipped_per_mille = 0;
        for node in 0..self.nodes.len() {
            if !self.nodes[node].is_well() || self.wires_of(node).any(|w| self.wires[w].cut) {
                let unnamed = self.wires_of(node).any(|w| self.wires[w].entry.is_none());
                // A restart ends every trouble.
                let how = match unnamed || self.nodes[node].draining {
                    true => Trouble::Leave,
                    false => Trouble::Kill,
                };
                self.heal(node, how);
            }
        }
    }
}
