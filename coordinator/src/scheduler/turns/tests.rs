use proptest::prelude::*;

use super::*;

const PLENTY: u64 = u64::MAX;

/// Makes a client of a number.
type Level = fn(u64) -> ClientKey;

/// Who has an address alone takes turns with others like who shares one with them.
const LEVELS: [Level; 2] = [by_key, by_address];

fn by_key(key: u64) -> ClientKey {
    ClientKey { address: 0, key }
}

fn by_address(address: u64) -> ClientKey {
    ClientKey { address, key: 0 }
}

fn turns(client: Level, entries: &[(u64, u32)]) -> Turns<u32> {
    let mut turns = Turns::default();
    for &(number, item) in entries {
        turns.push(client(number), 10, item);
    }
    turns
}

fn running(client: Level, counts: &[(u64, usize)]) -> HashMap<ClientKey, usize> {
    let counts = counts.iter();
    counts
        .map(|&(number, count)| (client(number), count))
        .collect()
}

#[test]
fn clients_take_turns_and_keep_their_own_order() {
    for client in LEVELS {
        let mut turns = turns(client, &[(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (3, 6)]);
        assert_eq!(
            turns.take(9, PLENTY, &running(client, &[])),
            [1, 4, 6, 2, 5, 3]
        );
        assert!(turns.is_empty());
    }
}

#[test]
fn a_newcomer_gets_the_next_place() {
    for client in LEVELS {
        let mut turns = turns(client, &[(1, 1), (1, 2)]);
        let all_places = running(client, &[(1, 8)]);
        assert_eq!(turns.take(1, PLENTY, &all_places), [1]);
        turns.push(client(2), 10, 3);
        assert_eq!(turns.take(1, PLENTY, &all_places), [3]);
        assert_eq!(turns.take(1, PLENTY, &all_places), [2]);
    }
}

#[test]
fn newcomers_cannot_keep_anybody_waiting() {
    for client in LEVELS {
        let mut turns = turns(client, &[(1, 1), (1, 2), (1, 3)]);
        let none = running(client, &[]);
        assert_eq!(turns.take(1, PLENTY, &none), [1]);
        let mut order = Vec::new();
        for item in 10..20 {
            turns.push(client(u64::from(item)), 10, item);
            turns.push(client(u64::from(item) + 100), 10, item + 100);
            order.extend(turns.take(1, PLENTY, &none));
        }
        assert_eq!(order[..3], [10, 110, 2], "{order:?}");
    }
}

#[test]
fn who_has_just_been_served_is_no_newcomer() {
    for client in LEVELS {
        let mut turns = turns(client, &[(1, 1)]);
        let none = running(client, &[]);
        assert_eq!(turns.take(1, PLENTY, &none), [1]);
        turns.push(client(1), 10, 2);
        turns.push(client(2), 10, 3);
        assert_eq!(turns.take(9, PLENTY, &none), [3, 2]);
    }
}

#[test]
fn turns_go_on_between_calls() {
    for client in LEVELS {
        let mut turns = turns(client, &[(1, 1), (1, 2), (2, 3), (2, 4)]);
        let one_at_a_time = running(client, &[]);
        let order: Vec<u32> = (0..4)
            .flat_map(|_| turns.take(1, PLENTY, &one_at_a_time))
            .collect();
        assert_eq!(order, [1, 3, 2, 4]);
    }
}

#[test]
fn who_waits_for_memory_lets_others_pass_so_many_times() {
    for client in LEVELS {
        let mut turns = Turns::default();
        turns.push(client(1), 100, 0);
        for item in 1..=40 {
            turns.push(client(2), 10, item);
        }
        let none = running(client, &[]);
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
}

#[test]
fn the_client_with_the_most_entries_gives_one_up_for_a_newcomer() {
    for client in LEVELS {
        let mut turns = turns(client, &[(1, 1), (1, 2), (1, 3), (2, 4), (2, 5)]);
        assert!(!turns.can_displace(client(1)) && !turns.can_displace(client(2)));
        assert_eq!(turns.displace(client(3)), Some(3));
        turns.push(client(3), 10, 6);
        // Two against one more than one: nothing would be fairer.
        assert_eq!(turns.displace(client(3)), None);
        assert_eq!(turns.displace(client(4)).map(|item| item % 3), Some(2));
    }
}

#[test]
fn the_place_in_the_queue_is_that_of_a_clients_turn() {
    for client in LEVELS {
        let turns = turns(client, &[(1, 1), (1, 2), (1, 3), (1, 4), (2, 5)]);
        assert_eq!(turns.before(client(1)), 5);
        assert_eq!(turns.before(client(2)), 1 + 2);
        assert_eq!(turns.before(client(3)), 2);
    }
}

#[test]
fn made_up_keys_get_the_turns_of_one_client() {
    let mut turns = Turns::default();
    for key in 1..=6 {
        turns.push(ClientKey { address: 1, key }, 10, key);
    }
    // All places are those of other made-up keys.
    let mut counts: HashMap<ClientKey, usize> = (11..=18)
        .map(|key| (ClientKey { address: 1, key }, 1))
        .collect();
    let honest = ClientKey { address: 2, key: 1 };
    for item in 20..23 {
        turns.push(honest, 10, item);
    }
    assert_eq!(turns.before(honest), 3 + 4);
    assert_eq!(turns.before(ClientKey { address: 2, key: 2 }), 1 + 2);
    assert_eq!(turns.before(ClientKey { address: 1, key: 9 }), 6 + 3);
    assert_eq!(turns.before(by_address(3)), 1 + 1);
    assert_eq!(turns.take(1, PLENTY, &counts), [20]);
    counts.clear();
    assert_eq!(turns.take(9, PLENTY, &counts), [1, 21, 2, 22, 3, 4, 5, 6]);
}

#[test]
fn made_up_keys_get_the_places_of_one_client_over_time() {
    const PLACES: usize = 4;
    let mut turns = Turns::default();
    let honest = ClientKey { address: 2, key: 0 };
    let mut made_up = 0;
    let mut live: VecDeque<ClientKey> = VecDeque::new();
    let mut started: HashMap<u64, usize> = HashMap::new();
    for _ in 0..100 {
        while turns.len() < 40 {
            made_up += 1;
            let key = made_up;
            let liar = ClientKey { address: 1, key };
            turns.push(liar, 1, liar);
            if turns.of(honest) < 5 {
                turns.push(honest, 1, honest);
            }
        }
        let mut counts = HashMap::new();
        for &client in &live {
            *counts.entry(client).or_default() += 1;
        }
        for client in turns.take(PLACES - live.len(), PLENTY, &counts) {
            *started.entry(client.address).or_default() += 1;
            live.push_back(client);
        }
        live.pop_front();
    }
    assert!(started[&1].abs_diff(started[&2]) <= 1, "{started:?}");
}

#[test]
fn keys_behind_one_address_share_its_turns() {
    let mut turns = Turns::default();
    let client = |address, key| ClientKey { address, key };
    for (address, key, item) in [
        (1, 1, 111),
        (1, 1, 112),
        (1, 1, 113),
        (2, 1, 211),
        (2, 1, 212),
        (1, 2, 121),
        (1, 2, 122),
    ] {
        turns.push(client(address, key), 10, item);
    }
    let none = HashMap::new();
    assert_eq!(turns.take(4, PLENTY, &none), [111, 211, 121, 212]);
    // Inside the address too, the fewest running requests count before the rounds.
    let counts = HashMap::from([(client(1, 2), 1)]);
    assert_eq!(turns.take(1, PLENTY, &counts), [112]);
    assert_eq!(turns.take(9, PLENTY, &counts), [113, 122]);
}

#[test]
fn the_fullest_address_gives_an_entry_up_for_another_address() {
    let client = |address, key| ClientKey { address, key };
    let mut turns = Turns::default();
    for key in 1..=4 {
        turns.push(client(1, key), 10, key);
    }
    // One more key of that address has no right to a place of the others.
    assert!(!turns.can_displace(client(1, 5)));
    for item in 20..22 {
        turns.push(client(2, 1), 10, item);
    }
    // The address with the most gives way, although its keys have only one entry each.
    assert_eq!(turns.displace(client(2, 1)), Some(4));
    turns.push(client(2, 1), 10, 22);
    // Three each: nothing between the addresses would be fairer, but between the keys of one.
    assert_eq!(turns.displace(client(2, 1)), None);
    assert_eq!(turns.displace(client(1, 5)), None);
    assert_eq!(turns.displace(client(2, 2)), Some(22));
    turns.push(client(2, 2), 10, 23);
    // A third address takes the newest entry of the key with the most there.
    turns.push(client(2, 1), 10, 24);
    assert_eq!(turns.displace(client(3, 1)), Some(24));
    assert_eq!(turns.len(), 6);
}

#[test]
fn who_waits_for_memory_is_passed_so_many_times_in_the_turns_of_its_address() {
    let mut turns = Turns::default();
    let large = ClientKey { address: 1, key: 1 };
    turns.push(large, 100, 0);
    for item in 1..=80 {
        let address = item % 2 + 1;
        turns.push(ClientKey { address, key: 2 }, 10, item);
    }
    let none = HashMap::new();
    let started = (0..80).map(|_| turns.take(1, 50, &none).len());
    // The turns of the other address between them pass nobody.
    assert_eq!(started.sum::<usize>() as u32, 2 * MAX_PASSES);
    assert_eq!(turns.take(1, 100, &none), [0]);
    assert_eq!(turns.take(1, 50, &none).len(), 1);
}

#[test]
fn entries_are_removed_from_all_clients_and_the_rest_goes_on() {
    let mut turns = Turns::default();
    for item in 0..12 {
        let client = ClientKey {
            address: item % 2,
            key: item % 3,
        };
        turns.push(client, 10, item);
    }
    let mut oldest = turns.drain_oldest(|item| *item < 4 || *item == 11);
    oldest.sort_unstable();
    assert_eq!(oldest, [0, 1, 2, 3]);
    turns.retain(|item| item % 2 == 0);
    assert_eq!(turns.len(), 4);
    let mut left = turns.take(9, PLENTY, &HashMap::new());
    left.sort_unstable();
    assert_eq!(left, [4, 6, 8, 10]);
    assert!(turns.is_empty());
}

/// A client of few addresses and keys.
fn some_client() -> impl Strategy<Value = ClientKey> {
    (0u64..3, 0u64..3).prop_map(|(address, key)| ClientKey { address, key })
}

proptest! {
    /// Places that become free one by one go to addresses so that none that waits runs more than one
    /// request less than another that was served meanwhile, and so do those of one address to keys.
    #[test]
    fn shares_are_equal_while_clients_wait(
        entries in prop::collection::vec(some_client(), 1..80),
        places in 1usize..20,
    ) {
        let mut turns = Turns::default();
        for (item, client) in (0u32..).zip(&entries) {
            turns.push(*client, 1, (*client, item));
        }
        let mut counts: HashMap<ClientKey, usize> = HashMap::new();
        let mut last: HashMap<ClientKey, u32> = HashMap::new();
        for _ in 0..places {
            for (client, item) in turns.take(1, PLENTY, &counts) {
                *counts.entry(client).or_default() += 1;
                // First in, first out within one client.
                prop_assert!(last.insert(client, item).is_none_or(|before| before < item));
            }
            let of = |client: ClientKey| counts.get(&client).copied().unwrap_or(0);
            let keys = |address| (0..3).map(move |key| ClientKey { address, key });
            let of_address = |address| keys(address).map(of).sum::<usize>();
            let most_of_addresses = (0..3).map(of_address).max().unwrap_or(0);
            for address in 0..3 {
                let most_of_keys = keys(address).map(of).max().unwrap_or(0);
                for client in keys(address).filter(|client| turns.of(*client) > 0) {
                    prop_assert!(of(client) + 1 >= most_of_keys);
                    prop_assert!(of_address(address) + 1 >= most_of_addresses);
                }
            }
        }
    }

    /// With requests of any size that fit alone, all start in the end, and none is passed more
    /// often than it may be.
    #[test]
    fn nobody_starves(
        entries in prop::collection::vec((some_client(), 1u64..=100), 1..60),
        ends in prop::collection::vec(any::<prop::sample::Index>(), 400),
    ) {
        let mut turns = Turns::default();
        for (item, &(client, bytes)) in entries.iter().enumerate() {
            turns.push(client, bytes, item);
        }
        let mut started: Vec<usize> = Vec::new();
        let mut live: Vec<usize> = Vec::new();
        for end in ends {
            let mut counts: HashMap<ClientKey, usize> = HashMap::new();
            for &item in &live {
                *counts.entry(entries[item].0).or_default() += 1;
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

    /// However many keys are made up after it came, and although new addresses come, a request starts
    /// after few turns of each client that was there before it.
    #[test]
    fn newcomers_keep_nobody_waiting(
        before in prop::collection::vec(some_client(), 0..30),
        address in 0u64..3,
        newcomers in prop::collection::vec((0u64..4, 0u64..5), 200),
    ) {
        let mut turns = Turns::default();
        let none = HashMap::new();
        for client in &before {
            turns.push(*client, 10, false);
            turns.push(*client, 10, false);
            turns.take(1, PLENTY, &none);
        }
        turns.push(ClientKey { address, key: 99 }, 10, true);
        let mut started = false;
        for (new, pair) in (100..).zip(newcomers.chunks(2)) {
            for &(address, key) in pair {
                let key = if key == 4 { new } else { key };
                turns.push(ClientKey { address, key }, 10, false);
            }
            if new % 3 == 0 {
                turns.push(by_address(new), 10, false);
            }
            started |= turns.take(1, PLENTY, &none) == [true];
        }
        prop_assert!(started);
    }
}
