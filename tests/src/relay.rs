//! A network link in user space: forwards TCP connections with delay, a rate, losses and flipped
//! bits, can fall silent, and can break connections.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ds4_common::random::SplitMix64;
use rustix::thread::set_current_timer_slack;

use crate::namespace::Namespace;

/// The most segments on their way in each direction, like the queue of a real link.
const QUEUE: usize = 64;

/// The most bytes of a segment.
const SEGMENT: usize = 32 << 10;

/// How much later a lost segment arrives: the least time after which a kernel retransmits.
const RETRANSMISSION: Duration = Duration::from_millis(200);

const CONNECT: Duration = Duration::from_secs(5);

/// How bytes travel, in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Conditions {
    /// Delay of one way.
    pub delay: Duration,
    /// The rate of each direction, shared by all connections; `None` for no limit.
    pub bytes_per_second: Option<f64>,
    /// The share of segments that are lost and sent again, from 0 to 1.
    pub loss: f64,
    /// The share of segments of which one bit is flipped, from 0 to 1.
    pub flips: f64,
}

impl Conditions {
    /// A link of `megabits` per second with a round trip of `round_trip` and no losses.
    #[must_use]
    pub fn link(round_trip: Duration, megabits: f64) -> Self {
        Conditions {
            delay: round_trip / 2,
            bytes_per_second: Some(megabits * 1e6 / 8.0),
            ..Conditions::default()
        }
    }
}

/// Forwards connections to one target until it is dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    listener: TcpListener,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    line: Mutex<Line>,
    ended: AtomicBool,
    /// Bytes that have been forwarded, towards the target and back.
    passed: [AtomicU64; 2],
    /// Bits that have been flipped.
    flipped: AtomicU64,
    /// The most bytes to forward, towards the target and back.
    limits: [AtomicU64; 2],
    silent: Mutex<bool>,
    heard: Condvar,
    connections: Mutex<VecDeque<Weak<Connection>>>,
}

#[derive(Debug)]
struct Line {
    conditions: Conditions,
    /// When each direction has sent all that it has taken.
    free: [Instant; 2],
    random: SplitMix64,
}

#[derive(Debug)]
struct Connection([TcpStream; 2]);

impl Relay {
    /// Listens on `listen` in `namespace`, and connects from there to `target`. `seed` decides
    /// which segments are lost.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the address cannot be bound.
    pub fn start(
        namespace: &Namespace,
        listen: SocketAddr,
        target: SocketAddr,
        conditions: Conditions,
        seed: u64,
    ) -> Result<Self> {
        let listener = namespace.run(|| TcpListener::bind(listen).context(listen))??;
        let address = listener.local_addr()?;
        let now = Instant::now();
        let state = Arc::new(State {
            line: Mutex::new(Line {
                conditions,
                free: [now; 2],
                random: SplitMix64::new(seed),
            }),
            ended: AtomicBool::new(false),
            passed: Default::default(),
            flipped: AtomicU64::new(0),
            limits: [u64::MAX; 2].map(AtomicU64::new),
            silent: Mutex::new(false),
            heard: Condvar::new(),
            connections: Mutex::default(),
        });
        let (clients, shared) = (listener.try_clone()?, Arc::clone(&state));
        // Threads start in the namespace of the thread that starts them.
        namespace.run(move || {
            thread::spawn(move || accept(&clients, target, &shared));
        })?;
        Ok(Relay {
            address,
            listener,
            state,
        })
    }

    /// The address at which the relay listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the conditions for all bytes that are not on their way yet.
    pub fn set(&self, conditions: Conditions) {
        lock(&self.state.line).conditions = conditions;
    }

    /// While the relay is silent, nothing arrives and neither side is notified.
    pub fn silence(&self, silent: bool) {
        *lock(&self.state.silent) = silent;
        self.state.heard.notify_all();
    }

    /// Closes all connections, on both sides.
    pub fn break_connections(&self) {
        let connections = std::mem::take(&mut *lock(&self.state.connections));
        for connection in connections.iter().filter_map(Weak::upgrade) {
            connection.end();
        }
    }

    /// Forwards at most `bytes` back from the target, counted over all connections. The rest is
    /// held back, and connections stay open.
    pub fn limit_replies(&self, bytes: u64) {
        self.state.limits[1].store(bytes, Ordering::SeqCst);
    }

    /// Bits that have been flipped, in both directions.
    #[must_use]
    pub fn flipped(&self) -> u64 {
        self.state.flipped.load(Ordering::Relaxed)
    }

    /// Bytes that have been taken for forwarding, towards the target and back.
    #[must_use]
    pub fn passed(&self) -> [u64; 2] {
        let of = |direction: usize| self.state.passed[direction].load(Ordering::Relaxed);
        [of(0), of(1)]
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        // Wakes the accepting thread; this fails only if it is awake.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        self.silence(false);
        self.break_connections();
    }
}

impl Connection {
    fn end(&self) {
        for stream in &self.0 {
            // It may have ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl State {
    /// Waits while the relay is silent.
    fn listen(&self) {
        let silent = lock(&self.silent);
        let ended = || self.ended.load(Ordering::SeqCst);
        let heard = self.heard.wait_while(silent, |silent| *silent && !ended());
        drop(heard.unwrap_or_else(PoisonError::into_inner));
    }

    /// Holds a connection open until the relay ends.
    fn hold(&self) {
        let silent = lock(&self.silent);
        let ended = || self.ended.load(Ordering::SeqCst);
        let held = self.heard.wait_while(silent, |_| !ended());
        drop(held.unwrap_or_else(PoisonError::into_inner));
    }

    /// Flips a bit of some segments.
    fn damage(&self, bytes: &mut [u8]) {
        let mut line = lock(&self.line);
        let share = line.conditions.flips;
        if share > 0.0 && line.random.chance(share) && !bytes.is_empty() {
            let bit = line.random.below(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            self.flipped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// When `bytes` that are sent now will arrive.
    fn arrival(&self, direction: usize, bytes: usize) -> Instant {
        let mut line = lock(&self.line);
        let Conditions {
            delay,
            bytes_per_second,
            loss,
            ..
        } = line.conditions;
        let now = Instant::now();
        let sending = bytes_per_second.map_or(0.0, |rate| bytes as f64 / rate);
        let sent = line.free[direction].max(now) + Duration::from_secs_f64(sending);
        line.free[direction] = sent;
        match line.random.chance(loss) {
            true => sent + delay + RETRANSMISSION,
            false => sent + delay,
        }
    }
}

fn accept(clients: &TcpListener, target: SocketAddr, state: &Arc<State>) {
    for client in clients.incoming() {
        if state.ended.load(Ordering::SeqCst) {
            return;
        }
        if let Ok(client) = client {
            let state = Arc::clone(state);
            thread::spawn(move || connect(client, target, &state));
        }
    }
}

fn connect(client: TcpStream, target: SocketAddr, state: &Arc<State>) {
    state.listen();
    let Ok(node) = TcpStream::connect_timeout(&target, CONNECT) else {
        return;
    };
    let _ = (client.set_nodelay(true), node.set_nodelay(true));
    let connection = Arc::new(Connection([client, node]));
    {
        let mut connections = lock(&state.connections);
        connections.retain(|known| known.strong_count() > 0);
        connections.push_back(Arc::downgrade(&connection));
    }
    if state.ended.load(Ordering::SeqCst) {
        return connection.end();
    }
    for direction in 0..2 {
        let (send, receive) = sync_channel(QUEUE);
        let (connection, state) = (Arc::clone(&connection), Arc::clone(state));
        let (from, line) = (Arc::clone(&connection), Arc::clone(&state));
        thread::spawn(move || take(&from.0[direction], direction, &line, &send));
        thread::spawn(move || deliver(&connection.0[1 - direction], &state, &receive));
    }
}

/// When a segment arrives, and its bytes.
type Segment = (Instant, Vec<u8>);

fn take(mut from: &TcpStream, direction: usize, state: &State, to: &SyncSender<Segment>) {
    let mut bytes = vec![0; SEGMENT];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let before = state.passed[direction].fetch_add(count as u64, Ordering::Relaxed);
        let limit = state.limits[direction].load(Ordering::SeqCst);
        let allowed = limit.saturating_sub(before).min(count as u64) as usize;
        let due = state.arrival(direction, allowed);
        state.damage(&mut bytes[..allowed]);
        if to.send((due, bytes[..allowed].to_vec())).is_err() {
            break;
        }
        if allowed < count {
            state.hold();
        }
    }
}

fn deliver(mut to: &TcpStream, state: &State, segments: &Receiver<Segment>) {
    // With the usual timer slack of 50 us, delays of a tenth of a millisecond would be imprecise.
    let _ = set_current_timer_slack(NonZeroU64::new(1));
    for (due, bytes) in segments {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        state.listen();
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    state.listen();
    let _ = to.shutdown(Shutdown::Write);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
        let address = listener.local_addr().expect("address");
        thread::spawn(move || {
            for peer in listener.incoming().flatten() {
                thread::spawn(move || std::io::copy(&mut &peer, &mut &peer));
            }
        });
        address
    }

    fn relay(conditions: Conditions) -> (Relay, TcpStream) {
        let any = "127.0.0.1:0".parse().expect("address");
        let relay = Relay::start(&Namespace::Current, any, echo(), conditions, 1).expect("relay");
        let client = TcpStream::connect(relay.address()).expect("connected");
        let limit = Some(Duration::from_secs(20));
        client.set_read_timeout(limit).expect("limit");
        (relay, client)
    }

    fn round(mut client: &TcpStream, bytes: usize) -> Duration {
        let start = Instant::now();
        let sent: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
        client.write_all(&sent).expect("sent");
        let mut back = vec![0; bytes];
        client.read_exact(&mut back).expect("back");
        assert!(back == sent, "bytes are changed or out of order");
        start.elapsed()
    }

    #[test]
    fn bytes_arrive_whole_and_no_sooner_than_the_link_allows() {
        let delay = Duration::from_millis(20);
        let slow = Conditions {
            delay,
            bytes_per_second: Some(1e6),
            ..Conditions::default()
        };
        let (relay, client) = relay(slow);
        assert!(round(&client, 1) >= 2 * delay);
        // 100 kB take 100 ms to the target; the last segment takes its own time back.
        assert!(round(&client, 100_000) >= 2 * delay + Duration::from_millis(100));
        assert_eq!(relay.passed(), [100_001; 2]);
        relay.set(Conditions {
            loss: 1.0,
            ..Conditions::default()
        });
        assert!(round(&client, 1) >= 2 * RETRANSMISSION);
    }

    #[test]
    fn a_bit_of_each_segment_is_flipped_where_that_is_asked_for() {
        let flips = Conditions {
            flips: 1.0,
            ..Conditions::default()
        };
        let (relay, mut client) = relay(flips);
        client.write_all(&[0; 8]).expect("sent");
        let mut back = [0; 8];
        client.read_exact(&mut back).expect("back");
        // One there and one back, unless both hit the same bit.
        assert_eq!(relay.flipped(), 2);
        let ones: u32 = back.iter().map(|byte| byte.count_ones()).sum();
        assert!(ones == 2 || ones == 0, "{back:?}");
    }

    #[test]
    fn silence_keeps_connections_open_and_a_break_closes_them() {
        let (relay, mut client) = relay(Conditions::default());
        round(&client, 10);
        relay.silence(true);
        client.write_all(b"late").expect("sent");
        let short = Some(Duration::from_millis(50));
        client.set_read_timeout(short).expect("limit");
        let mut back = [0; 4];
        let error = client.read_exact(&mut back).expect_err("nothing");
        assert!(matches!(
            error.kind(),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
        ));
        relay.silence(false);
        let limit = Some(Duration::from_secs(20));
        client.set_read_timeout(limit).expect("limit");
        client.read_exact(&mut back).expect("heard at last");
        assert_eq!(&back, b"late");
        relay.break_connections();
        assert_eq!(client.read(&mut back).expect("an end"), 0);
        let again = TcpStream::connect(relay.address()).expect("a new connection");
        again.set_read_timeout(limit).expect("limit");
        round(&again, 10);
    }

    #[test]
    fn replies_stop_at_the_limit_with_the_connection_open() {
        let (relay, mut client) = relay(Conditions::default());
        relay.limit_replies(100);
        client.write_all(&[7; 300]).expect("sent");
        let mut back = [0; 100];
        client.read_exact(&mut back).expect("back");
        let short = Some(Duration::from_millis(50));
        client.set_read_timeout(short).expect("limit");
        assert!(client.read(&mut back).is_err(), "more than the limit");
    }
}
