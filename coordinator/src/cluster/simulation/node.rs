//! A node as its peers see it: it computes one call after the other, at its own pace, and may
//! misbehave.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ds4_common::tiles::Holdings;
use ds4_proto::pb::{self, compute_reply};
use ds4_proto::wire::{decode_work, rows_checksum, rows_message};

use super::random::Random;
use crate::cluster::scripted::{GRID, SHAPE, rows};

const US: Duration = Duration::from_micros(1);

/// What a node does wrong in about every second answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manners {
    Good,
    /// Sends an answer twice.
    Duplicates,
    WrongLength,
    UnknownCall,
    /// A message of an unknown kind.
    Nonsense,
    Welcomes,
    Refuses,
    Busy,
    /// Computes and does not answer.
    Swallows,
    /// Answers long after the call was given up.
    Late,
    /// Computes infinity or NaN.
    NotFinite,
    /// Computes rows with a wrong bit.
    WrongBit,
}

impl Manners {
    pub(super) const BAD: [Manners; 10] = [
        Manners::Duplicates,
        Manners::WrongLength,
        Manners::UnknownCall,
        Manners::Nonsense,
        Manners::Welcomes,
        Manners::Refuses,
        Manners::Busy,
        Manners::Swallows,
        Manners::Late,
        Manners::NotFinite,
    ];
}

/// A call that a node computes.
#[derive(Debug)]
pub(super) struct SimJob {
    pub(super) work: pb::Work,
    pub(super) received: Duration,
}

#[derive(Debug)]
pub(super) struct SimNode {
    /// Its place among the nodes: no two compute the same wrong numbers.
    number: u32,
    pub(super) held: Arc<Holdings>,
    pub(super) alive: bool,
    /// Counts its processes: each knows only its own connections.
    pub(super) process: u64,
    /// Neither computes nor answers, without any notice.
    pub(super) stopped: bool,
    pub(super) draining: bool,
    pub(super) manners: Manners,
    /// Factor of its usual time for a call.
    pub(super) slow: u32,
    /// When it will have computed all accepted calls.
    pub(super) busy_until: Duration,
    /// Microseconds per token.
    pub(super) pace: u64,
    /// Grows with each trouble, so that the end of an earlier one does not end a later one.
    pub(super) troubles: u64,
}

impl SimNode {
    pub(super) fn new(number: usize, held: Arc<Holdings>, pace: u64) -> Self {
        SimNode {
            number: number as u32,
            held,
            alive: true,
            process: 0,
            stopped: false,
            draining: false,
            manners: Manners::Good,
            slow: 1,
            busy_until: Duration::ZERO,
            pace,
            troubles: 0,
        }
    }

    /// Whether nothing is wrong with it.
    pub(super) fn is_well(&self) -> bool {
        self.alive
            && !self.stopped
            && !self.draining
            && self.slow == 1
            && self.manners == Manners::Good
    }

    /// Resets it to the state after a start.
    pub(super) fn recover(&mut self, now: Duration) {
        self.alive = true;
        self.stopped = false;
        self.draining = false;
        self.manners = Manners::Good;
        self.slow = 1;
        self.busy_until = now;
    }

    /// When a call that arrives now will be computed.
    pub(super) fn schedule(
        &mut self,
        work: &pb::Work,
        now: Duration,
        random: &mut Random,
    ) -> Duration {
        let size = u64::from(work.tokens) * (1 + work.rects.len() as u64 / 16);
        let usual = 150 * US + US * (size * self.pace + random.below(60)) as u32;
        self.busy_until = self.busy_until.max(now) + usual * self.slow;
        self.busy_until
    }

    /// Its answers to a call that has been computed.
    pub(super) fn answers(
        &self,
        job: &SimJob,
        now: Duration,
        random: &mut Random,
    ) -> Vec<Option<compute_reply::Kind>> {
        let id = job.work.id;
        let call = decode_work(&job.work, &SHAPE, &self.held).expect("only legal work is sent");
        assert!(call.is_intact(), "it was looked at on arrival");
        if now > job.received + call.deadline {
            return vec![failure(id, pb::FailureKind::Expired)];
        }
        let values = rows(GRID, &call.batch, call.rects.rects()).0;
        let answer = |id, rows: &[f32]| {
            let checksum = rows_checksum(rows, call.checksum);
            Some(compute_reply::Kind::Rows(rows_message(
                id, rows, checksum, 0, 0,
            )))
        };
        let right = answer(id, &values);
        if random.chance(50) {
            return vec![right];
        }
        match self.manners {
            Manners::Good | Manners::Late => vec![right],
            Manners::Duplicates => vec![right.clone(), right],
            Manners::WrongLength => vec![answer(id, &values[..values.len() - 1])],
            Manners::UnknownCall => vec![answer(id + 1_000_000, &values)],
            Manners::Nonsense => vec![None],
            Manners::Welcomes => vec![Some(compute_reply::Kind::Welcome(pb::Welcome::default()))],
            Manners::Refuses => vec![failure(id, pb::FailureKind::Internal)],
            Manners::Busy => vec![failure(id, pb::FailureKind::Busy)],
            Manners::Swallows => Vec::new(),
            Manners::NotFinite => {
                let mut wrong = values;
                wrong[0] = f32::from_bits(f32::NAN.to_bits() | self.number);
                vec![answer(id, &wrong)]
            }
            Manners::WrongBit => {
                let mut wrong = values;
                let at = random.index(wrong.len());
                wrong[at] = f32::from_bits(wrong[at].to_bits() ^ 1 << (self.number % 20));
                vec![answer(id, &wrong)]
            }
        }
    }
}

pub(super) fn failure(id: u64, kind: pb::FailureKind) -> Option<compute_reply::Kind> {
    Some(compute_reply::Kind::Failure(pb::Failure {
        id,
        kind: kind.into(),
        message: "simulated".to_owned(),
    }))
}

/// Unanswered calls of one connection at a node, and whether each was cancelled.
#[derive(Debug, Default)]
pub(super) struct Unanswered(BTreeMap<u64, bool>);

impl Unanswered {
    pub(super) fn accept(&mut self, id: u64) {
        assert!(
            self.0.insert(id, false).is_none(),
            "call {id} was sent twice"
        );
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.0.contains_key(&id)
    }

    pub(super) fn cancel(&mut self, id: u64) {
        if let Some(cancelled) = self.0.get_mut(&id) {
            *cancelled = true;
        }
    }

    /// Ends a call; returns whether it was cancelled.
    pub(super) fn finish(&mut self, id: u64) -> bool {
        self.0.remove(&id).unwrap_or(false)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
