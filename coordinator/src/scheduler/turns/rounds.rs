//! Parties that wait and take turns by rounds: each has one turn in a round, and a newcomer has one
//! in the round that is under way.

use std::collections::{HashMap, VecDeque};

/// What a party waits with.
pub(super) trait Waiting: Default {
    /// How many entries wait in it.
    fn entries(&self) -> usize;
}

/// The parties that have entries, and whose turn it is.
#[derive(Debug)]
pub(super) struct Rounds<W> {
    /// In the order of their last turn or of their coming.
    parties: VecDeque<Party<W>>,
    /// The round of the last turn.
    round: u64,
    /// Parties without entries that have had their turn in this round. What they waited with may have
    /// rounds of its own, which go on if they come back.
    served: HashMap<u64, W>,
}

#[derive(Debug)]
struct Party<W> {
    id: u64,
    /// In which round it has its next turn.
    turn: u64,
    /// Whether it has had one in the round before that.
    served: bool,
    /// Never without entries.
    waiting: W,
}

impl<W> Default for Rounds<W> {
    fn default() -> Self {
        Rounds {
            parties: VecDeque::new(),
            round: 0,
            served: HashMap::new(),
        }
    }
}

impl<W: Waiting> Waiting for Rounds<W> {
    fn entries(&self) -> usize {
        let parties = self.parties.iter();
        parties.map(|party| party.waiting.entries()).sum()
    }
}

impl<W: Waiting> Rounds<W> {
    /// Where the party `id` is, if it has entries.
    pub(super) fn find(&self, id: u64) -> Option<usize> {
        self.parties.iter().position(|party| party.id == id)
    }

    /// The id of the party at `at`.
    pub(super) fn id(&self, at: usize) -> u64 {
        self.parties[at].id
    }

    /// What the party at `at` waits with.
    pub(super) fn waiting(&self, at: usize) -> &W {
        &self.parties[at].waiting
    }

    /// The same, to change the entries; whoever may have taken the last one calls
    /// [`Rounds::end_turn`] or [`Rounds::prune`].
    pub(super) fn waiting_mut(&mut self, at: usize) -> &mut W {
        &mut self.parties[at].waiting
    }

    /// What the party `id` waits with, to which the caller adds an entry.
    pub(super) fn join(&mut self, id: u64) -> &mut W {
        let at = self.find(id).unwrap_or_else(|| {
            let served = self.served.remove(&id);
            self.parties.push_back(Party {
                id,
                turn: self.round + 1,
                served: served.is_some(),
                waiting: served.unwrap_or_default(),
            });
            self.parties.len() - 1
        });
        self.waiting_mut(at)
    }

    /// How many entries the party `id` has.
    pub(super) fn entries_of(&self, id: u64) -> usize {
        self.find(id).map_or(0, |at| self.waiting(at).entries())
    }

    /// Where the parties are, first the one with the next turn: that with the fewest requests of
    /// `running`, and among equals by rounds.
    pub(super) fn order(&self, running: impl Fn(u64) -> usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.parties.len()).collect();
        order.sort_by_cached_key(|&at| {
            let party = &self.parties[at];
            (running(party.id), party.turn, party.served)
        });
        order
    }

    /// Ends the turn of the party at `at`, of which the caller has taken an entry.
    pub(super) fn end_turn(&mut self, at: usize) {
        let Some(mut party) = self.parties.remove(at) else {
            return;
        };
        if party.turn > self.round {
            self.round = party.turn;
            self.served.clear();
        }
        if party.waiting.entries() == 0 {
            self.served.insert(party.id, party.waiting);
        } else {
            party.turn += 1;
            party.served = true;
            self.parties.push_back(party);
        }
    }

    /// Where the party with the most entries is.
    pub(super) fn fullest(&self) -> Option<usize> {
        (0..self.parties.len()).max_by_key(|&at| self.waiting(at).entries())
    }

    /// The party with the most entries, if `newcomer` would have fewer even with one more.
    pub(super) fn fuller_than(&self, newcomer: u64) -> Option<usize> {
        let fairer = |&at: &usize| self.waiting(at).entries() > self.entries_of(newcomer) + 1;
        self.fullest().filter(fairer)
    }

    /// How many entries have their turn before one of the party `id` that has `own` others of that
    /// party before it.
    pub(super) fn before(&self, id: u64, own: usize) -> usize {
        let others = self.parties.iter().filter(|party| party.id != id);
        let ahead = others.map(|party| party.waiting.entries().min(own + 1));
        own + ahead.sum::<usize>()
    }

    /// Lets `remove` take entries from what each party waits with.
    pub(super) fn prune(&mut self, mut remove: impl FnMut(&mut W)) {
        self.parties.retain_mut(|party| {
            remove(&mut party.waiting);
            party.waiting.entries() > 0
        });
    }
}
