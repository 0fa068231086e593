//! Whose turn it is: a queue that is fair between clients. Pure: no clock, no lock.
//!
//! The next place goes to the waiting client with the fewest requests running, and among equals by
//! rounds: each client has one turn in a round, and a newcomer has one in the round that is under way.
//! A client's own requests keep their order. So a client with a hundred requests gives way to one with
//! a single request as soon as a place is free, and newcomers cannot keep anybody waiting for ever.
//!
//! A request whose caches do not fit at the moment lets others pass, which use the memory
//! meanwhile, but only so many: then nobody starts before it, and the memory that running requests
//! give back is its own.

use std::collections::{HashMap, HashSet, VecDeque};

/// What tells clients apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientKey(pub u64);

/// How many requests may pass one that waits for memory.
const MAX_PASSES: u32 = 16;

/// The waiting entries of all clients.
#[derive(Debug)]
pub(super) struct Turns<T> {
    /// Clients that have entries, in the order of their last turn or of their coming.
    clients: VecDeque<WaitingClient<T>>,
    /// The round of the last turn.
    round: u64,
    /// Clients without entries that have had their turn in this round.
    served: HashSet<ClientKey>,
}

#[derive(Debug)]
struct WaitingClient<T> {
    key: ClientKey,
    /// In which round it has its next turn.
    turn: u64,
    /// Whether it has had one in the round before that.
    served: bool,
    /// Oldest first; never empty.
    entries: VecDeque<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    item: T,
    bytes: u64,
    /// Entries that started although this one's turn had come.
    passes: u32,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Turns {
            clients: VecDeque::new(),
            round: 0,
            served: HashSet::new(),
        }
    }
}

impl<T> Turns<T> {
    pub(super) fn len(&self) -> usize {
        self.clients.iter().map(|client| client.entries.len()).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// How many entries `client` has.
    pub(super) fn of(&self, client: ClientKey) -> usize {
        let own = self.clients.iter().find(|waiting| waiting.key == client);
        own.map_or(0, |waiting| waiting.entries.len())
    }

    /// Appends an entry that needs `bytes` of memory to run.
    pub(super) fn push(&mut self, client: ClientKey, bytes: u64, item: T) {
        let entry = Entry {
            item,
            bytes,
            passes: 0,
        };
        match self
            .clients
            .iter_mut()
            .find(|waiting| waiting.key == client)
        {
            Some(waiting) => waiting.entries.push_back(entry),
            None => self.clients.push_back(WaitingClient {
                key: client,
                turn: self.round + 1,
                served: self.served.remove(&client),
                entries: VecDeque::from([entry]),
            }),
        }
    }

    /// Takes up to `count` entries that need at most `bytes` together, while `running` says how many
    /// entries of each client were taken before and still run.
    pub(super) fn take(
        &mut self,
        count: usize,
        mut bytes: u64,
        running: &HashMap<ClientKey, usize>,
    ) -> Vec<T> {
        let mut running = running.clone();
        let mut taken = Vec::new();
        while taken.len() < count {
            let Some(at) = self.next(bytes, &running) else {
                break;
            };
            let Some(mut client) = self.clients.remove(at) else {
                break;
            };
            if let Some(entry) = client.entries.pop_front() {
                bytes -= entry.bytes;
                *running.entry(client.key).or_default() += 1;
                taken.push(entry.item);
            }
            if client.turn > self.round {
                self.round = client.turn;
                self.served.clear();
            }
            if client.entries.is_empty() {
                self.served.insert(client.key);
            } else {
                client.turn += 1;
                client.served = true;
                self.clients.push_back(client);
            }
        }
        taken
    }

    /// The client whose first entry is next and fits into `bytes`. Notes which others it passes.
    fn next(&mut self, bytes: u64, running: &HashMap<ClientKey, usize>) -> Option<usize> {
        let rank = |at: &usize| {
            let client = &self.clients[*at];
            let runs = running.get(&client.key).copied().unwrap_or(0);
            (runs, client.turn, client.served)
        };
        let mut order: Vec<usize> = (0..self.clients.len()).collect();
        order.sort_by_key(rank);
        let fits = |&at: &usize| self.clients[at].entries[0].bytes <= bytes;
        let place = order.iter().position(fits)?;
        let passed = &order[..place];
        if passed
            .iter()
            .any(|&at| self.clients[at].entries[0].passes >= MAX_PASSES)
        {
            return None;
        }
        for &at in passed {
            self.clients[at].entries[0].passes += 1;
        }
        Some(order[place])
    }

    /// Removes the newest entry of the client with the most, if `newcomer` would have fewer than
    /// that client even with one more.
    pub(super) fn displace(&mut self, newcomer: ClientKey) -> Option<T> {
        let at = self.displaceable(newcomer)?;
        let entry = self.clients[at].entries.pop_back()?;
        if self.clients[at].entries.is_empty() {
            self.clients.remove(at);
        }
        Some(entry.item)
    }

    /// Whether [`Turns::displace`] would remove an entry.
    pub(super) fn can_displace(&self, newcomer: ClientKey) -> bool {
        self.displaceable(newcomer).is_some()
    }

    fn displaceable(&self, newcomer: ClientKey) -> Option<usize> {
        let waiting = |at: &usize| self.clients[*at].entries.len();
        let most = (0..self.clients.len()).max_by_key(waiting)?;
        (waiting(&most) > self.of(newcomer) + 1).then_some(most)
    }

    /// How many of the waiting entries have their turn before the next one that `client` adds.
    pub(super) fn before(&self, client: ClientKey) -> usize {
        let own = self.of(client);
        let ahead = |waiting: &WaitingClient<T>| waiting.entries.len().min(own + 1);
        let others = self.clients.iter().filter(|waiting| waiting.key != client);
        own + others.map(ahead).sum::<usize>()
    }

    /// Keeps the entries for which `keep` returns true.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        for client in &mut self.clients {
            client.entries.retain(|entry| keep(&entry.item));
        }
        self.clients.retain(|client| !client.entries.is_empty());
    }

    /// Removes from each client's oldest entries those for which `is_over` returns true.
    pub(super) fn drain_oldest(&mut self, is_over: impl Fn(&T) -> bool) -> Vec<T> {
        let mut over = Vec::new();
        for client in &mut self.clients {
            while let Some(entry) = client.entries.pop_front() {
                if is_over(&entry.item) {
                    over.push(entry.item);
                } else {
                    client.entries.push_front(entry);
                    break;
                }
            }
        }
        self.clients.retain(|client| !client.entries.is_empty());
        over
    }

    /// Removes all entries.
    pub(super) fn clear(&mut self) {
        self.clients.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLENTY: u64 = u64::MAX;

    fn turns(entries: &[(u64, u32)]) -> Turns<u32> {
        let mut turns = Turns::default();
        for &(client, item) in entries {
            turns.push(ClientKey(client), 10, item);
        }
        turns
    }

    fn running(counts: &[(u64, usize)]) -> HashMap<ClientKey, usize> {
        let counts = counts.iter();
        counts
            .map(|&(client, count)| (ClientKey(client), count))
            .collect()
    }

    #[test]
    fn clients_take_turns_and_keep_their_own_order() {
        let mut turns = turns(&[(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (3, 6)]);
        assert_eq!(turns.take(9, PLENTY, &running(&[])), [1, 4, 6, 2, 5, 3]);
        assert!(turns.is_empty());
    }

    #[test]
    fn a_newcomer_gets_the_next_place() {
        let mut turns = turns(&[(1, 1), (1, 2)]);
        let all_places = running(&[(1, 8)]);
        assert_eq!(turns.take(1, PLENTY, &all_places), [1]);
        turns.push(ClientKey(2), 10, 3);
        assert_eq!(turns.take(1, PLENTY, &all_places), [3]);
        assert_eq!(turns.take(1, PLENTY, &all_places), [2]);
    }

    #[test]
    fn newcomers_cannot_keep_anybody_waiting() {
        let mut turns = turns(&[(1, 1), (1, 2), (1, 3)]);
        let none = running(&[]);
        assert_eq!(turns.take(1, PLENTY, &none), [1]);
        let mut order = Vec::new();
        for item in 10..20 {
            turns.push(ClientKey(u64::from(item)), 10, item);
            turns.push(ClientKey(u64::from(item) + 100), 10, item + 100);
            order.extend(turns.take(1, PLENTY, &none));
        }
        assert_eq!(order[..3], [10, 110, 2], "{order:?}");
    }

    #[test]
    fn who_has_just_been_served_is_no_newcomer() {
        let mut turns = turns(&[(1, 1)]);
        let none = running(&[]);
        assert_eq!(turns.take(1, PLENTY, &none), [1]);
        turns.push(ClientKey(1), 10, 2);
        turns.push(ClientKey(2), 10, 3);
        assert_eq!(turns.take(9, PLENTY, &none), [3, 2]);
    }

    #[test]
    fn turns_go_on_between_calls() {
        let mut turns = turns(&[(1, 1), (1, 2), (2, 3), (2, 4)]);
        let one_at_a_time = running(&[]);
        let order: Vec<u32> = (0..4)
            .flat_map(|_| turns.take(1, PLENTY, &one_at_a_time))
            .collect();
        assert_eq!(order, [1, 3, 2, 4]);
    }

    #[test]
    fn who_waits_for_memory_lets_others_pass_so_many_times() {
        let mut turns = Turns::default();
        turns.push(ClientKey(1), 100, 0);
        for item in 1..=40 {
            turns.push(ClientKey(2), 10, item);
        }
        let none = running(&[]);
        let passed = turns.take(99, 1000 - 901, &none);
        assert_eq!(passed.len(), 9);
        let mut all = passed.len();
        for _ in 0..40 {
            all += turns.take(1, 50, &none).len();
        }
        assert_eq!(all as u32, MAX_PASSES);
        // Its memory is free at last.
        assert_eq!(turns.take(1, 100, &none), [0]);
        assert_eq!(turns.take(1, 100, &none), [17]);
    }

    #[test]
    fn the_client_with_the_most_entries_gives_one_up_for_a_newcomer() {
        let mut turns = turns(&[(1, 1), (1, 2), (1, 3), (2, 4), (2, 5)]);
        assert!(!turns.can_displace(ClientKey(1)) && !turns.can_displace(ClientKey(2)));
        assert_eq!(turns.displace(ClientKey(3)), Some(3));
        turns.push(ClientKey(3), 10, 6);
        // Two against one more than one: nothing would be fairer.
        assert_eq!(turns.displace(ClientKey(3)), None);
        assert_eq!(turns.displace(ClientKey(4)).map(|item| item % 3), Some(2));
    }

    #[test]
    fn the_place_in_the_queue_is_that_of_a_clients_turn() {
        let turns = turns(&[(1, 1), (1, 2), (1, 3), (1, 4), (2, 5)]);
        assert_eq!(turns.before(ClientKey(1)), 5);
        assert_eq!(turns.before(ClientKey(2)), 1 + 2);
        assert_eq!(turns.before(ClientKey(3)), 2);
    }

    proptest! {
        /// Places that become free one by one go to clients so that nobody who waits runs more than
        /// one request less than another who was served meanwhile.
        #[test]
        fn shares_are_equal_while_clients_wait(
            entries in prop::collection::vec(0u64..5, 1..80),
            places in 1usize..20,
        ) {
            let mut turns = Turns::default();
            for (item, client) in (0u32..).zip(&entries) {
                turns.push(ClientKey(*client), 1, (*client, item));
            }
            let mut counts = running(&[]);
            let mut last: HashMap<u64, u32> = HashMap::new();
            for _ in 0..places {
                for (client, item) in turns.take(1, PLENTY, &counts) {
                    *counts.entry(ClientKey(client)).or_default() += 1;
                    // First in, first out within one client.
                    prop_assert!(last.insert(client, item).is_none_or(|before| before < item));
                    let most = counts.values().copied().max().unwrap_or(0);
                    for waiting in 0..5 {
                        let key = ClientKey(waiting);
                        if turns.of(key) > 0 {
                            let own = counts.get(&key).copied().unwrap_or(0);
                            prop_assert!(own + 1 >= most, "{own} of {most}");
                        }
                    }
                }
            }
        }

        /// With requests of any size that fit alone, all start in the end, and none is passed more
        /// often than it may be.
        #[test]
        fn nobody_starves(
            entries in prop::collection::vec((0u64..4, 1u64..=100), 1..60),
            ends in prop::collection::vec(any::<prop::sample::Index>(), 400),
        ) {
            let mut turns = Turns::default();
            for (item, &(client, bytes)) in entries.iter().enumerate() {
                turns.push(ClientKey(client), bytes, item);
            }
            let mut started: Vec<usize> = Vec::new();
            let mut live: Vec<usize> = Vec::new();
            for end in ends {
                let mut counts = running(&[]);
                for &item in &live {
                    *counts.entry(ClientKey(entries[item].0)).or_default() += 1;
                }
                let used: u64 = live.iter().map(|&item| entries[item].1).sum();
                let taken = turns.take(8 - live.len(), 100 - used, &counts);
                started.extend(&taken);
                live.extend(taken);
                prop_assert!(live.iter().map(|&item| entries[item].1).sum::<u64>() <= 100);
                if !live.is_empty() {
                    live.swap_remove(end.index(live.len()));
                }
            }
            prop_assert_eq!(started.len(), entries.len());
        }
    }
}
