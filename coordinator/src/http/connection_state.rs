//! What the parts of one connection know of each other: socket, HTTP, answer and places.
//!
//! All but the places run on the connection's own task, one after the other.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::time::Instant as TokioInstant;

/// Where a request comes from: an extension of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// What counts as one address: whoever has one IPv6 address has the 64 bits behind its network.
pub(super) fn neighbourhood(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PlaceKind {
    /// Every route.
    Api,
    /// Health and metrics; anything else is refused.
    Probe,
}

/// The state of one connection.
#[derive(Debug)]
pub(super) struct ConnectionState {
    opened: Instant,
    /// Milliseconds from the opening to the end of the last answer.
    idle_from_ms: AtomicU64,
    flags: Mutex<Flags>,
    asked: AtomicBool,
    first_byte: AtomicU8,
}

/// What changes often and is read together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flags {
    /// A request is being received or answered.
    pub(super) in_request: bool,
    /// The request's version has interim answers.
    pub(super) interim_allowed: bool,
    /// Some of the answer has been written.
    pub(super) answer_begun: bool,
    /// The client has closed its direction.
    pub(super) half_closed: bool,
    /// An interim answer is wanted, to see whether the client is still there.
    pub(super) probe_wanted: bool,
    /// Bytes of the next request have arrived.
    pub(super) head_begun: bool,
    /// A line of them is complete.
    pub(super) line_ended: bool,
    /// The client may still be sending what nobody reads.
    pub(super) unread: bool,
    /// Since when the client takes no bytes.
    pub(super) blocked_since: Option<TokioInstant>,
    /// Since when the connection is closed but for what the client still sends.
    pub(super) lingers_since: Option<TokioInstant>,
}

impl Default for ConnectionState {
    fn default() -> Self {
        ConnectionState {
            opened: Instant::now(),
            idle_from_ms: AtomicU64::new(0),
            flags: Mutex::default(),
            asked: AtomicBool::new(false),
            first_byte: AtomicU8::new(0),
        }
    }
}

impl ConnectionState {
    /// The flags at this moment.
    pub(super) fn flags(&self) -> Flags {
        *self.flags.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes flags.
    pub(super) fn set(&self, change: impl FnOnce(&mut Flags)) {
        // A flag is a flag, whoever panicked.
        change(&mut self.flags.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A request's head has been read. `interim_allowed` says whether it may get interim answers.
    pub(super) fn request_begins(&self, interim_allowed: bool) {
        self.asked.store(true, Ordering::Relaxed);
        self.set(|flags| {
            *flags = Flags {
                in_request: true,
                interim_allowed,
                unread: flags.unread,
                blocked_since: flags.blocked_since,
                ..Flags::default()
            };
        });
    }

    /// The answer's last bytes are on their way.
    pub(super) fn request_ends(&self) {
        let now = self.opened.elapsed().as_millis() as u64;
        self.idle_from_ms.store(now, Ordering::Relaxed);
        self.set(|flags| flags.in_request = false);
    }

    /// Whether any request has been read.
    pub(super) fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Milliseconds without a request; `None` with one, or while the client takes its answer.
    pub(super) fn idle_ms(&self) -> Option<u64> {
        let flags = self.flags();
        if flags.in_request || flags.blocked_since.is_some() {
            return None;
        }
        let now = self.opened.elapsed().as_millis() as u64;
        Some(now.saturating_sub(self.idle_from_ms.load(Ordering::Relaxed)))
    }

    /// Time since the connection was accepted.
    pub(super) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// Bytes have arrived.
    pub(super) fn received(&self, bytes: &[u8]) {
        let flags = self.flags();
        if bytes.is_empty() || flags.in_request {
            return;
        }
        if !flags.head_begun && !self.has_asked() {
            self.first_byte.store(bytes[0], Ordering::Relaxed);
        }
        let ended = bytes.contains(&b'\n');
        self.set(|flags| {
            flags.head_begun = true;
            flags.line_ended |= ended;
        });
    }

    /// The first byte that arrived, 0 without one.
    pub(super) fn first_byte(&self) -> u8 {
        self.first_byte.load(Ordering::Relaxed)
    }
}
