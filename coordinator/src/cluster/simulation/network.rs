//! Moves messages between coordinators and nodes.

use std::time::Duration;

use ds4_proto::pb::{self, compute_request};
use ds4_proto::wire::{is_intact, open_reply, open_request, reply, seal};
use prost::Message;

use super::node::{Manners, SimJob, failure};
use super::wire::{Parcel, Wire};
use super::world::{WINDOW, World, WorldEvent};
use crate::cluster::link::calls::StreamAction;

const MS: Duration = Duration::from_millis(1);

/// The end of a connection over which a message came that is not what was sent.
fn damaged(wire: usize, generation: u64) -> WorldEvent {
    WorldEvent::Broken {
        wire,
        generation,
        reason: "a message was damaged",
    }
}

impl World {
    /// Puts the messages that the coordinators have written onto the network.
    pub(super) fn collect(&mut self) {
        for wire in 0..self.wires.len() {
            while let Some(up) = &mut self.wires[wire].up
                && let Ok(message) = up.outbound.try_recv()
            {
                self.tally.messages += 1;
                let at = self.now() + self.transit();
                let Wire { generation, up, .. } = &mut self.wires[wire];
                let up = up.as_mut().expect("it is up");
                up.last_out = up.last_out.max(at);
                let (at, generation) = (up.last_out, *generation);
                let event = match self.flip_a_bit(&message).and_then(|m| open_request(m).ok()) {
                    Some(Some(kind)) => WorldEvent::Parcel {
                        wire,
                        generation,
                        parcel: Parcel::ToNode(kind),
                    },
                    // The node ends a stream with such a message.
                    Some(None) | None => damaged(wire, generation),
                };
                self.schedule_at(at, event);
            }
        }
    }

    /// The message as it arrives; `None` if it cannot be read any more.
    fn flip_a_bit<M: Message + Default + Clone>(&mut self, message: &M) -> Option<M> {
        if self.flipped_per_mille == 0 || self.random.below(1000) >= self.flipped_per_mille {
            return Some(message.clone());
        }
        self.tally.flipped_bits += 1;
        let mut bytes = message.encode_to_vec();
        let bit = self.random.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        M::decode(bytes.as_slice()).ok()
    }

    pub(super) fn transit(&mut self) -> Duration {
        let usual = self.random.between(self.delay / 10, self.delay);
        match self.random.chance(self.lost_percent) {
            true => usual + self.random.between(200 * MS, 1000 * MS),
            false => usual,
        }
    }

    pub(super) fn deliver(&mut self, index: usize, generation: u64, parcel: Parcel) {
        let wire = &mut self.wires[index];
        let node = &self.nodes[wire.node];
        let Some(up) = wire.up.as_ref().filter(|_| wire.generation == generation) else {
            return;
        };
        let gone = !node.alive || up.process != node.process;
        let at_node = matches!(parcel, Parcel::Computed(_));
        if (wire.cut && !at_node) || (node.stopped && !matches!(parcel, Parcel::ToCoordinator(_))) {
            wire.held_back.push((generation, parcel));
            return;
        }
        match parcel {
            Parcel::ToCoordinator(kind) => self.reply(index, kind),
            _ if gone => {}
            Parcel::ToNode(compute_request::Kind::Work(work)) => self.accept(index, work),
            Parcel::ToNode(compute_request::Kind::Cancel(cancel)) => {
                if let Some(up) = &mut self.wires[index].up {
                    up.unanswered.cancel(cancel.id);
                }
            }
            Parcel::ToNode(compute_request::Kind::Hello(_)) => {
                panic!("only the link's task sends a hello")
            }
            Parcel::Computed(job) => self.computed(index, &job),
        }
    }

    fn accept(&mut self, wire: usize, work: pb::Work) {
        let now = self.now();
        let Wire {
            node,
            generation,
            up,
            ..
        } = &mut self.wires[wire];
        let node = &mut self.nodes[*node];
        let up = up.as_mut().expect("delivered over a connection that is up");
        let repeated = up.unanswered.contains(work.id);
        if repeated && !is_intact(&work) {
            // Another id by a flipped bit: the node ends the stream.
            self.end(wire, "a call is already in progress", false);
            return;
        }
        up.unanswered.accept(work.id);
        if !is_intact(&work) {
            up.unanswered.finish(work.id);
            self.tally.corrupt_calls += 1;
            self.send_back(wire, failure(work.id, pb::FailureKind::Corrupt));
            return;
        }
        assert!(up.unanswered.len() <= WINDOW, "the window is not respected");
        if node.draining {
            let id = work.id;
            up.unanswered.finish(id);
            self.send_back(wire, failure(id, pb::FailureKind::Draining));
            return;
        }
        let at = node.schedule(&work, now, &mut self.random);
        let job = SimJob {
            work,
            received: now,
        };
        let (generation, parcel) = (*generation, Parcel::Computed(job));
        self.schedule_at(
            at,
            WorldEvent::Parcel {
                wire,
                generation,
                parcel,
            },
        );
    }

    fn computed(&mut self, wire: usize, job: &SimJob) {
        let now = self.now();
        let Wire { node, up, .. } = &mut self.wires[wire];
        let node = &self.nodes[*node];
        let up = up.as_mut().expect("computed for a connection that is up");
        let swallowed = node.manners == Manners::Swallows;
        let late = node.manners == Manners::Late;
        if up.unanswered.finish(job.work.id) {
            self.tally.unwanted_answers += 1;
            // A node that has begun to compute may answer nevertheless.
            if !late && !swallowed {
                self.send_back(wire, failure(job.work.id, pb::FailureKind::Cancelled));
                return;
            }
        }
        let answers = node.answers(job, now, &mut self.random);
        let wrong = matches!(node.manners, Manners::WrongBit | Manners::NotFinite);
        self.tally.wrong_rows += u64::from(wrong);
        if late && self.random.chance(50) {
            let more = self.random.between(100 * MS, 20_000 * MS);
            let up = self.wires[wire].up.as_mut().expect("still up");
            up.last_in = up.last_in.max(now + more);
        }
        for answer in answers {
            self.send_back(wire, answer);
        }
    }

    fn send_back(&mut self, wire: usize, kind: Option<pb::compute_reply::Kind>) {
        self.tally.messages += 1;
        let at = self.now() + self.transit();
        // A message of no kind, which a node with bad manners sends, has a checksum like any other.
        let message = match kind {
            Some(kind) => reply(kind),
            None => seal(pb::ComputeReply::default()),
        };
        let arrived = self.flip_a_bit(&message).and_then(|m| open_reply(m).ok());
        let Wire { generation, up, .. } = &mut self.wires[wire];
        let Some(up) = up else { return };
        up.last_in = up.last_in.max(at);
        let (at, generation) = (up.last_in, *generation);
        let event = match arrived {
            Some(kind) => WorldEvent::Parcel {
                wire,
                generation,
                parcel: Parcel::ToCoordinator(kind),
            },
            None => damaged(wire, generation),
        };
        self.schedule_at(at, event);
    }

    /// Handles a message as the link's task does.
    fn reply(&mut self, wire: usize, kind: Option<pb::compute_reply::Kind>) {
        let Wire {
            coordinator,
            entry,
            up,
            ..
        } = &self.wires[wire];
        let up = up.as_ref().expect("delivered over a connection that is up");
        match up.calls.on_reply(kind) {
            Ok(StreamAction::Read) => {}
            Ok(StreamAction::Drain) => {
                if let Some(entry) = entry {
                    self.tables[*coordinator].draining(*entry);
                }
            }
            Ok(StreamAction::Close) => self.end(wire, "it is shutting down", true),
            Err(_) => {
                self.tally.broken_rules += 1;
                self.end(wire, "it broke the protocol", false);
            }
        }
    }
}
