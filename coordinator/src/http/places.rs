//! Who may hold a connection.
//!
//! There is a fixed number of places for the API, and a small reserve beside them that answers
//! probes however many clients hold the places. A newcomer without a place takes that of a
//! connection without a request; so silent clients delay nobody.
//!
//! One address may hold seven times as many places as are free (a dynamic threshold, as switches
//! share their buffers). Alone it gets seven eighths of them, and any number of addresses that take
//! what they can still leave some.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::connection_state::{ConnectionState, PlaceKind, neighbourhood};
use super::server_metrics as metrics;

/// Places that one address may hold for each free one.
const SHARE_OF_FREE: usize = 7;

/// All connections of a listener.
#[derive(Debug)]
pub(super) struct Places {
    api: usize,
    probe: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    last: u64,
    places: HashMap<u64, HeldPlace>,
    /// Places for the API, by address.
    by_address: HashMap<IpAddr, usize>,
    api: usize,
    probe: usize,
}

#[derive(Debug)]
struct HeldPlace {
    kind: PlaceKind,
    address: IpAddr,
    state: Arc<ConnectionState>,
    evicted: Arc<Notify>,
}

/// A connection's place, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    id: u64,
    pub(super) kind: PlaceKind,
    /// Told when a newcomer has got the place.
    pub(super) evicted: Arc<Notify>,
}

impl Places {
    /// `api` places, and `probe` in the reserve; at least one of each.
    pub(super) fn new(api: usize, probe: usize) -> Arc<Self> {
        Arc::new(Places {
            api: api.max(1),
            probe: probe.max(1),
            held: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // No method panics between two consistent states.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from `peer`. There always is one: at worst it is in the reserve,
    /// where it is the oldest one's.
    pub(super) fn admit(self: &Arc<Self>, peer: IpAddr, state: Arc<ConnectionState>) -> Place {
        let address = neighbourhood(peer);
        let mut held = self.lock();
        let kind = if held.has_room(address, self.api) || held.evict_idle(Some(address)) {
            PlaceKind::Api
        } else {
            if held.probe >= self.probe {
                held.evict_oldest_probe();
            }
            PlaceKind::Probe
        };
        held.last += 1;
        let (id, evicted) = (held.last, Arc::new(Notify::new()));
        let place = HeldPlace {
            kind,
            address,
            state,
            evicted: Arc::clone(&evicted),
        };
        held.insert(id, place);
        Place {
            places: Arc::clone(self),
            id,
            kind,
            evicted,
        }
    }

    /// Ends the connection that has been without a request for longest. Returns whether there is
    /// one.
    pub(super) fn evict_idle(&self) -> bool {
        self.lock().evict_idle(None)
    }
}

impl Held {
    fn of(&self, address: IpAddr) -> usize {
        self.by_address.get(&address).copied().unwrap_or(0)
    }

    fn has_room(&self, address: IpAddr, limit: usize) -> bool {
        self.of(address) < limit.saturating_sub(self.api).saturating_mul(SHARE_OF_FREE)
    }

    /// Ends an idle connection of the API in favour of one from `newcomer`: of the address that
    /// has the most places, if that has as many as the newcomer's. Among those, one that has never
    /// asked anything counts as idle for eight times as long.
    fn evict_idle(&mut self, newcomer: Option<IpAddr>) -> bool {
        let least = newcomer.map_or(0, |address| self.of(address));
        let idle = self.places.iter().filter_map(|(&id, place)| {
            let count = self.of(place.address);
            let mine = newcomer.is_some_and(|address| address == place.address);
            if place.kind != PlaceKind::Api || (count < least && !mine) {
                return None;
            }
            let idle = place.state.idle_ms()?;
            let weight = if place.state.has_asked() { 1 } else { 8 };
            Some((count, idle.saturating_add(1).saturating_mul(weight), id))
        });
        let victim = idle.max_by_key(|&(count, idle, id)| (count, idle, std::cmp::Reverse(id)));
        let Some((_, _, id)) = victim else {
            return false;
        };
        self.evict(id);
        true
    }

    fn evict_oldest_probe(&mut self) {
        let probes = self
            .places
            .iter()
            .filter(|(_, place)| place.kind == PlaceKind::Probe);
        if let Some(&oldest) = probes.map(|(id, _)| id).min() {
            self.evict(oldest);
        }
    }

    fn evict(&mut self, id: u64) {
        if let Some(place) = self.remove(id) {
            place.evicted.notify_one();
        }
    }

    fn insert(&mut self, id: u64, place: HeldPlace) {
        match place.kind {
            PlaceKind::Api => {
                self.api += 1;
                *self.by_address.entry(place.address).or_default() += 1;
            }
            PlaceKind::Probe => self.probe += 1,
        }
        metrics::connections(1, place.kind);
        self.places.insert(id, place);
    }

    fn remove(&mut self, id: u64) -> Option<HeldPlace> {
        let place = self.places.remove(&id)?;
        match place.kind {
            PlaceKind::Api => {
                self.api -= 1;
                if let Some(count) = self.by_address.get_mut(&place.address) {
                    *count -= 1;
                    if *count == 0 {
                        self.by_address.remove(&place.address);
                    }
                }
            }
            PlaceKind::Probe => self.probe -= 1,
        }
        metrics::connections(-1, place.kind);
        Some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // One that was evicted has none any more.
        self.places.lock().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    const A: [u8; 4] = [10, 0, 0, 1];
    const B: [u8; 4] = [10, 0, 0, 2];

    fn busy() -> Arc<ConnectionState> {
        let state = Arc::new(ConnectionState::default());
        state.request_begins(true);
        state
    }

    fn is_evicted(place: &Place) -> bool {
        place.evicted.notified().now_or_never().is_some()
    }

    #[test]
    fn one_address_does_not_get_every_place_and_few_places_are_not_divided() {
        let places = Places::new(512, 2);
        let admit = |address: [u8; 4]| -> Vec<Place> {
            let admit = |_| places.admit(address.into(), busy());
            (0..512).map(admit).collect()
        };
        let api = |held: &[Place]| held.iter().filter(|p| p.kind == PlaceKind::Api).count();
        let first = admit(A);
        assert_eq!(api(&first), 448, "seven times what is left");
        let second = admit(B);
        assert_eq!(api(&second), 56);
        let third = admit([10, 0, 0, 3]);
        assert_eq!(api(&third), 7);
        let few = Places::new(2, 1);
        let two: Vec<Place> = (0..2).map(|_| few.admit(A.into(), busy())).collect();
        assert_eq!(api(&two), 2);
    }

    #[test]
    fn a_newcomer_gets_the_place_of_a_silent_connection() {
        let places = Places::new(2, 1);
        let silent = || Arc::new(ConnectionState::default());
        let first = places.admit(A.into(), silent());
        let used = silent();
        used.request_begins(true);
        used.request_ends();
        let second = places.admit(A.into(), used);
        let third = places.admit(A.into(), busy());
        assert!(is_evicted(&first) && !is_evicted(&second));
        assert_eq!(third.kind, PlaceKind::Api);
        drop(first);
        let fourth = places.admit(A.into(), busy());
        assert!(is_evicted(&second) && !is_evicted(&third));
        assert_eq!(fourth.kind, PlaceKind::Api);
        // Nobody is idle: the reserve, whose oldest connection goes.
        let fifth = places.admit(A.into(), busy());
        assert_eq!((fifth.kind, is_evicted(&fifth)), (PlaceKind::Probe, false));
        let sixth = places.admit(A.into(), busy());
        assert_eq!((sixth.kind, is_evicted(&fifth)), (PlaceKind::Probe, true));
        drop((second, third));
        assert_eq!(places.admit(A.into(), busy()).kind, PlaceKind::Api);
    }

    #[test]
    fn the_address_with_the_most_places_gives_one_up() {
        let places = Places::new(4, 1);
        let silent = || Arc::new(ConnectionState::default());
        let modest = places.admit(B.into(), silent());
        let many: Vec<Place> = (0..3).map(|_| places.admit(A.into(), silent())).collect();
        for _ in 0..3 {
            let more = places.admit(A.into(), silent());
            assert_eq!(more.kind, PlaceKind::Api);
        }
        assert!(!is_evicted(&modest), "a neighbour's greed is not its loss");
        assert!(is_evicted(&many[0]));
    }

    #[test]
    fn addresses_of_one_network_count_as_one() {
        let one: IpAddr = "2001:db8::1".parse().expect("an address");
        let other: IpAddr = "2001:db8::ffff:1".parse().expect("an address");
        let away: IpAddr = "2001:db8:0:1::1".parse().expect("an address");
        assert_eq!(neighbourhood(one), neighbourhood(other));
        assert_ne!(neighbourhood(one), neighbourhood(away));
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().expect("an address");
        assert_eq!(neighbourhood(mapped), IpAddr::from(A));
    }
}
