//! Whose turn it is: a queue that is fair between clients. Pure: no clock, no lock.
//!
//! It is fair on two levels: first between addresses, then between the keys behind one address. Keys
//! are not checked, so whoever makes up a key for each request only divides the turns of its own
//! address, while the users of a proxy, who have one address together, are told apart by their keys.
//!
//! The next place goes to the waiting address with the fewest requests running, and among equals by
//! rounds: each has one turn in a round, and a newcomer has one in the round that is under way. Inside
//! the address it goes to a key by the same rule, and the requests of one key keep their order. So a
//! client with a hundred requests gives way to one with a single request as soon as a place is free,
//! and newcomers cannot keep anybody waiting for ever.
//!
//! A request whose caches do not fit at the moment lets others pass, which use the memory
//! meanwhile, but only so many: then nobody starts before it, and the memory that running requests
//! give back is its own.

mod rounds;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};

use rounds::{Rounds, Waiting};

/// What tells clients apart. Both parts may be hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientKey {
    /// The network address from which it sends. It shares the turns of the address with all other
    /// clients there.
    pub address: u64,
    /// The key that it names, or that of clients without one. Nobody checks it.
    pub key: u64,
}

/// How many requests may pass one that waits for memory.
const MAX_PASSES: u32 = 16;

/// The waiting entries of all clients.
#[derive(Debug)]
pub(super) struct Turns<T> {
    addresses: Rounds<Keys<T>>,
}

/// The keys behind one address.
type Keys<T> = Rounds<Entries<T>>;

/// The entries of one client, oldest first.
type Entries<T> = VecDeque<Entry<T>>;

#[derive(Debug)]
struct Entry<T> {
    item: T,
    bytes: u64,
    /// Entries that started although this one's turn had come.
    passes: u32,
}

/// Where a client's entries are until the next change of the queue.
#[derive(Clone, Copy)]
struct Place {
    address: usize,
    key: usize,
}

impl<T> Waiting for Entries<T> {
    fn entries(&self) -> usize {
        self.len()
    }
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Turns {
            addresses: Rounds::default(),
        }
    }
}

impl<T> Turns<T> {
    pub(super) fn len(&self) -> usize {
        self.addresses.entries()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries `client` has.
    pub(super) fn of(&self, client: ClientKey) -> usize {
        self.keys_of(client.address)
            .map_or(0, |keys| keys.entries_of(client.key))
    }

    fn keys_of(&self, address: u64) -> Option<&Keys<T>> {
        let at = self.addresses.find(address)?;
        Some(self.addresses.waiting(at))
    }

    /// Appends an entry that needs `bytes` of memory to run.
    pub(super) fn push(&mut self, client: ClientKey, bytes: u64, item: T) {
        let keys = self.addresses.join(client.address);
        keys.join(client.key).push_back(Entry {
            item,
            bytes,
            passes: 0,
        });
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
            let Some(place) = self.next(bytes, &running) else {
                break;
            };
            *running.entry(self.client(place)).or_default() += 1;
            if let Some(entry) = self.entries_mut(place).pop_front() {
                bytes -= entry.bytes;
                taken.push(entry.item);
            }
            self.end_turn(place);
        }
        taken
    }

    /// The client whose first entry is next and fits into `bytes`. Notes which others it passes.
    fn next(&mut self, bytes: u64, running: &HashMap<ClientKey, usize>) -> Option<Place> {
        let order = self.order(running);
        let fits = |&place: &Place| self.first(place).bytes <= bytes;
        let next = order.iter().position(fits)?;
        let passed = &order[..next];
        if passed
            .iter()
            .any(|&place| self.first(place).passes >= MAX_PASSES)
        {
            return None;
        }
        for &place in passed {
            self.entries_mut(place)[0].passes += 1;
        }
        Some(order[next])
    }

    /// All clients, first the one with the next turn.
    fn order(&self, running: &HashMap<ClientKey, usize>) -> Vec<Place> {
        let mut of_addresses: HashMap<u64, usize> = HashMap::new();
        for (client, count) in running {
            *of_addresses.entry(client.address).or_default() += count;
        }
        let of_address = |address| of_addresses.get(&address).copied().unwrap_or(0);
        let mut order = Vec::new();
        for at in self.addresses.order(of_address) {
            let address = self.addresses.id(at);
            let of_client = |key| {
                let client = ClientKey { address, key };
                running.get(&client).copied().unwrap_or(0)
            };
            let keys = self.addresses.waiting(at).order(of_client);
            order.extend(keys.into_iter().map(|key| Place { address: at, key }));
        }
        order
    }

    fn client(&self, place: Place) -> ClientKey {
        ClientKey {
            address: self.addresses.id(place.address),
            key: self.addresses.waiting(place.address).id(place.key),
        }
    }

    fn first(&self, place: Place) -> &Entry<T> {
        &self.addresses.waiting(place.address).waiting(place.key)[0]
    }

    fn entries_mut(&mut self, place: Place) -> &mut Entries<T> {
        let keys = self.addresses.waiting_mut(place.address);
        keys.waiting_mut(place.key)
    }

    fn end_turn(&mut self, place: Place) {
        let keys = self.addresses.waiting_mut(place.address);
        keys.end_turn(place.key);
        self.addresses.end_turn(place.address);
    }

    /// Removes the newest entry of the client with the most, if `newcomer` would have fewer than
    /// that client even with one more. Between clients of different addresses, those with the most
    /// and the fewest are the addresses.
    pub(super) fn displace(&mut self, newcomer: ClientKey) -> Option<T> {
        let place = self.displaceable(newcomer)?;
        let entry = self.entries_mut(place).pop_back()?;
        self.prune(|_| {});
        Some(entry.item)
    }

    /// Whether [`Turns::displace`] would remove an entry.
    pub(super) fn can_displace(&self, newcomer: ClientKey) -> bool {
        self.displaceable(newcomer).is_some()
    }

    fn displaceable(&self, newcomer: ClientKey) -> Option<Place> {
        if let Some(address) = self.addresses.fuller_than(newcomer.address) {
            let key = self.addresses.waiting(address).fullest()?;
            return Some(Place { address, key });
        }
        let address = self.addresses.find(newcomer.address)?;
        let key = self.addresses.waiting(address).fuller_than(newcomer.key)?;
        Some(Place { address, key })
    }

    /// How many of the waiting entries have their turn before the next one that `client` adds.
    pub(super) fn before(&self, client: ClientKey) -> usize {
        let of_address = self.keys_of(client.address).map_or(0, |keys| {
            keys.before(client.key, keys.entries_of(client.key))
        });
        self.addresses.before(client.address, of_address)
    }

    /// Keeps the entries for which `keep` returns true.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.prune(|entries| entries.retain(|entry| keep(&entry.item)));
    }

    /// Removes from each client's oldest entries those for which `is_over` returns true.
    pub(super) fn drain_oldest(&mut self, is_over: impl Fn(&T) -> bool) -> Vec<T> {
        let mut over = Vec::new();
        self.prune(|entries| {
            let waiting = |entry: &Entry<T>| !is_over(&entry.item);
            let count = entries.iter().position(waiting).unwrap_or(entries.len());
            over.extend(entries.drain(..count).map(|entry| entry.item));
        });
        over
    }

    /// Lets `remove` take entries of each client.
    fn prune(&mut self, mut remove: impl FnMut(&mut Entries<T>)) {
        self.addresses.prune(|keys| keys.prune(&mut remove));
    }

    /// Removes all entries.
    pub(super) fn clear(&mut self) {
        *self = Turns::default();
    }
}
