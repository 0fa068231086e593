//! The budget of memory for the bodies of all connections together.
//!
//! ```text
//! budget = room for bodies that arrive or wait + one body more for the oldest + what reading takes
//! ```
//!
//! A body takes its bytes off the budget as they arrive, and keeps them until its request is in the
//! scheduler's queue. When there is no room, it waits: not for long, since it holds what came so
//! far. The oldest body may also take what is set aside for it, so that bodies that wait for each
//! other never all do. While one waits, a body that arrives too slowly loses its memory: whoever
//! wants to hold memory must send bytes for it.
//!
//! Reading a body takes up to three times its size beside it, for at most one large body at a time
//! (see [`super::reading_threads`]): that part of the budget is set aside too. A first few bytes of
//! each body are free, as a connection's own buffers are, so that small requests always get through.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::sync::Notify;

use super::body_pace::BodyPace;
use super::error::ApiError;

/// Bytes of each body that are in no budget.
pub(super) const FREE: usize = 16 << 10;
/// What reading takes however small a body is: the most values of tools and messages, and buffers.
const READING: u64 = 32 << 20;
/// How many times its size reading a body takes, beside the body.
const READING_FACTOR: u64 = 3;
/// Bytes that must arrive in each [`BodyPatience::slowest`] while others wait for memory.
const PROGRESS: u64 = 64 << 10;

/// How long bodies wait and are waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyPatience {
    /// Longest wait of one body for memory.
    pub(super) wait: Duration,
    /// Time for 64 KiB of a body that holds memory while others wait for it.
    pub(super) slowest: Duration,
}

const PATIENCE: BodyPatience = BodyPatience {
    wait: Duration::from_secs(10),
    slowest: Duration::from_secs(2),
};

/// The least budget with which the largest body can be read.
#[must_use]
pub fn least_body_memory(body_limit: u64) -> u64 {
    let body = (1 + READING_FACTOR).saturating_mul(body_limit);
    body.saturating_add(READING)
}

/// The default budget: four of the largest bodies beside the least, or an eighth of `available`
/// memory where that is less and still enough.
#[must_use]
pub fn default_body_memory(body_limit: u64, available: Option<u64>) -> u64 {
    let least = least_body_memory(body_limit);
    let usual = least.saturating_add(body_limit.saturating_mul(4));
    available.map_or(usual, |bytes| (bytes / 8).clamp(least, usual))
}

/// The budget, shared by all connections.
#[derive(Debug)]
pub(super) struct BodyMemory {
    ledger: Mutex<Ledger>,
    /// Signalled when memory is free again and when a body loses its own.
    changed: Notify,
    body_limit: usize,
    patience: BodyPatience,
    pace: BodyPace,
}

impl BodyMemory {
    /// A budget of `bytes`, or of the least that suffices, for bodies of up to `body_limit`.
    pub(super) fn new(bytes: u64, body_limit: usize) -> Arc<Self> {
        Self::with_patience(bytes, body_limit, PATIENCE)
    }

    fn with_patience(bytes: u64, body_limit: usize, patience: BodyPatience) -> Arc<Self> {
        let oldest = body_limit as u64;
        let room = bytes.saturating_sub(least_body_memory(oldest));
        Arc::new(BodyMemory {
            ledger: Mutex::new(Ledger::new(room, oldest)),
            changed: Notify::new(),
            body_limit,
            patience,
            pace: BodyPace::new(),
        })
    }

    /// The pace at which bodies arrive.
    pub(super) fn pace(&self) -> &BodyPace {
        &self.pace
    }

    /// Most bytes of one body.
    pub(super) fn body_limit(&self) -> usize {
        self.body_limit
    }

    /// The memory of a new body: none yet.
    pub(super) fn hold(self: &Arc<Self>) -> BodyHold {
        BodyHold {
            memory: Arc::clone(self),
            id: self.lock().enter(Instant::now()),
        }
    }

    // No method panics while it holds the lock, so a poisoned lock still guards a sound state.
    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory that one body holds; free again when this is dropped.
#[derive(Debug)]
pub(super) struct BodyHold {
    memory: Arc<BodyMemory>,
    id: u64,
}

impl BodyHold {
    /// Takes `bytes` more, for which it may have to wait.
    pub(super) async fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let memory = &self.memory;
        let deadline = Instant::now() + memory.patience.wait;
        loop {
            let changed = memory.changed.notified();
            let now = Instant::now();
            {
                let mut ledger = memory.lock();
                match ledger.take(self.id, bytes as u64, now) {
                    Taken::Yes => return Ok(()),
                    Taken::Lost => return Err(lost()),
                    Taken::NoRoom => {}
                }
                if now >= deadline {
                    return Err(no_room(memory.patience));
                }
                if ledger.dispossess(now, memory.patience.slowest) {
                    memory.changed.notify_waiters();
                }
            }
            // Also now and then, since a body becomes slow by the clock alone.
            let _ = tokio::time::timeout(memory.patience.slowest / 8, changed).await;
        }
    }

    /// Resolves once this body has lost its memory to others.
    pub(super) async fn lost(&self) -> ApiError {
        loop {
            let changed = self.memory.changed.notified();
            if self.memory.lock().has_lost(self.id) {
                return lost();
            }
            changed.await;
        }
    }

    /// The body has arrived: from here on nobody waits for its sender.
    pub(super) fn complete(&mut self) {
        self.memory.lock().complete(self.id);
        // Another one is the oldest that arrives.
        self.memory.changed.notify_waiters();
    }
}

impl Drop for BodyHold {
    fn drop(&mut self) {
        self.memory.lock().leave(self.id);
        self.memory.changed.notify_waiters();
    }
}

fn no_room(patience: BodyPatience) -> ApiError {
    ApiError {
        retry_after_s: Some(patience.wait.as_secs().max(1)),
        ..ApiError::status(
            StatusCode::SERVICE_UNAVAILABLE,
            "body_memory_exhausted",
            "the server's memory for request bodies is in use",
        )
    }
}

fn lost() -> ApiError {
    ApiError::status(
        StatusCode::REQUEST_TIMEOUT,
        "body_too_slow",
        "the body arrived too slowly while others waited for the memory that it held",
    )
}

/// Who holds how much. Pure: its callers say what time it is.
#[derive(Debug)]
struct Ledger {
    /// Bytes that all bodies may hold together.
    room: u64,
    /// Bytes that the oldest of those that arrive may hold beyond.
    oldest: u64,
    held: u64,
    /// By age.
    bodies: BTreeMap<u64, HeldBody>,
    next_id: u64,
}

#[derive(Debug)]
struct HeldBody {
    /// Bytes that have arrived.
    bytes: u64,
    complete: bool,
    lost: bool,
    /// Whether it waits for memory, and not for its sender.
    waits: bool,
    /// When it last had [`PROGRESS`] bytes more than before.
    progress_at: Instant,
    progress: u64,
}

impl HeldBody {
    fn held(&self) -> u64 {
        self.bytes.saturating_sub(FREE as u64)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Yes,
    NoRoom,
    /// The body was too slow, and others got its memory.
    Lost,
}

impl Ledger {
    fn new(room: u64, oldest: u64) -> Self {
        Ledger {
            room,
            oldest,
            held: 0,
            bodies: BTreeMap::new(),
            next_id: 0,
        }
    }

    fn enter(&mut self, now: Instant) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.bodies.insert(
            id,
            HeldBody {
                bytes: 0,
                complete: false,
                lost: false,
                waits: false,
                progress_at: now,
                progress: 0,
            },
        );
        id
    }

    fn take(&mut self, id: u64, bytes: u64, now: Instant) -> Taken {
        let mut arriving = self.bodies.iter().filter(|(_, body)| !body.complete);
        let is_oldest = arriving.next().is_some_and(|(oldest, _)| *oldest == id);
        let limit = self.room + if is_oldest { self.oldest } else { 0 };
        let Some(body) = self.bodies.get_mut(&id).filter(|body| !body.lost) else {
            return Taken::Lost;
        };
        let before = body.held();
        let more = (body.bytes + bytes).saturating_sub(FREE as u64) - before;
        if more > 0 && self.held + more > limit {
            body.waits = true;
            return Taken::NoRoom;
        }
        self.held += more;
        body.bytes += bytes;
        if body.waits || body.bytes >= body.progress + PROGRESS {
            body.progress = body.bytes;
            body.progress_at = now;
        }
        body.waits = false;
        Taken::Yes
    }

    /// Takes the memory of the body that has been too slow for longest; returns whether there is
    /// one. It is free once that body's reader has noticed.
    fn dispossess(&mut self, now: Instant, slowest: Duration) -> bool {
        let too_slow = |body: &&mut HeldBody| {
            let waited_for = !body.complete && !body.waits && !body.lost && body.held() > 0;
            waited_for && now.saturating_duration_since(body.progress_at) > slowest
        };
        let slow = self.bodies.values_mut().filter(too_slow);
        let Some(body) = slow.min_by_key(|body| body.progress_at) else {
            return false;
        };
        body.lost = true;
        true
    }

    fn has_lost(&self, id: u64) -> bool {
        self.bodies.get(&id).is_some_and(|body| body.lost)
    }

    fn complete(&mut self, id: u64) {
        if let Some(body) = self.bodies.get_mut(&id) {
            body.complete = true;
        }
    }

    fn leave(&mut self, id: u64) {
        if let Some(body) = self.bodies.remove(&id) {
            self.held -= body.held();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const SLOWEST: Duration = Duration::from_secs(2);

    fn after(seconds: u64, start: Instant) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn small_bodies_always_get_through() {
        let start = Instant::now();
        let mut ledger = Ledger::new(0, 0);
        for _ in 0..100 {
            let id = ledger.enter(start);
            assert_eq!(ledger.take(id, FREE as u64, start), Taken::Yes);
            assert_eq!(ledger.take(id, 1, start), Taken::NoRoom);
        }
        assert_eq!(ledger.held, 0);
    }

    #[test]
    fn the_oldest_goes_on_when_all_wait() {
        let start = Instant::now();
        let mut ledger = Ledger::new(4 * MIB, 4 * MIB);
        let bodies: Vec<u64> = (0..4).map(|_| ledger.enter(start)).collect();
        for &body in &bodies {
            assert_eq!(ledger.take(body, MIB, start), Taken::Yes);
        }
        // Only what was free is left.
        assert_eq!(ledger.take(bodies[1], MIB, start), Taken::NoRoom);
        assert_eq!(ledger.take(bodies[0], 3 * MIB, start), Taken::Yes);
        ledger.complete(bodies[0]);
        // The next one is the oldest, but its memory is in use until the first one leaves.
        assert_eq!(ledger.take(bodies[1], 3 * MIB, start), Taken::NoRoom);
        ledger.leave(bodies[0]);
        assert_eq!(ledger.take(bodies[1], 3 * MIB, start), Taken::Yes);
        assert_eq!(ledger.take(bodies[2], 3 * MIB, start), Taken::NoRoom);
    }

    #[test]
    fn who_sends_nothing_loses_and_who_waits_does_not() {
        let start = Instant::now();
        let mut ledger = Ledger::new(2 * MIB, 0);
        let (silent, busy, late) = (
            ledger.enter(start),
            ledger.enter(start),
            ledger.enter(start),
        );
        assert_eq!(ledger.take(silent, MIB, start), Taken::Yes);
        assert_eq!(ledger.take(busy, MIB / 2, start), Taken::Yes);
        assert_eq!(ledger.take(busy, MIB / 4, after(2, start)), Taken::Yes);
        // A byte now and then is no progress.
        assert_eq!(ledger.take(silent, 1, after(2, start)), Taken::Yes);
        assert_eq!(ledger.take(late, MIB, after(2, start)), Taken::NoRoom);
        assert!(!ledger.dispossess(after(2, start), SLOWEST));
        assert!(ledger.dispossess(after(3, start), SLOWEST));
        assert!(ledger.has_lost(silent) && !ledger.has_lost(busy));
        assert_eq!(ledger.take(silent, 1, after(3, start)), Taken::Lost);
        ledger.leave(silent);
        assert_eq!(ledger.take(late, MIB, after(3, start)), Taken::Yes);
        // Nobody that waits, or is complete, is to blame.
        assert_eq!(ledger.take(busy, MIB, after(3, start)), Taken::NoRoom);
        ledger.complete(late);
        assert!(!ledger.dispossess(after(60, start), SLOWEST));
    }

    proptest! {
        /// Whatever bodies come, stall, wait and go: never more is held than there is, the count is
        /// that of the bodies, and the oldest that arrives is never told to wait.
        #[test]
        fn the_ledger_is_sound(moves in prop::collection::vec((0u8..5, 0u64..12, 0u64..5), 0..200)) {
            let start = Instant::now();
            let (room, one) = (8 * MIB, 4 * MIB);
            let mut ledger = Ledger::new(room, one);
            for (second, (action, id, amount)) in (0..).zip(moves) {
                let now = after(second, start);
                match action {
                    0 => { ledger.enter(now); }
                    1 => {
                        let size = ledger.bodies.get(&id).map_or(0, |body| body.bytes);
                        let bytes = (amount * MIB / 2).min(one - size);
                        let first = ledger.bodies.iter().find(|(_, body)| !body.complete);
                        let oldest = first.is_some_and(|(first, _)| *first == id);
                        let finished: u64 = ledger.bodies.values().filter(|b| b.complete).map(HeldBody::held).sum();
                        let found = ledger.take(id, bytes, now);
                        if oldest && finished == 0 {
                            prop_assert_ne!(found, Taken::NoRoom);
                        }
                    }
                    2 => ledger.complete(id),
                    3 => ledger.leave(id),
                    _ => { ledger.dispossess(now, SLOWEST); }
                }
                prop_assert!(ledger.held <= room + one);
                prop_assert_eq!(ledger.held, ledger.bodies.values().map(HeldBody::held).sum::<u64>());
            }
        }
    }

    #[tokio::test]
    async fn memory_comes_back_to_those_who_wait_for_it() {
        let patience = BodyPatience {
            wait: Duration::from_secs(20),
            slowest: Duration::from_secs(20),
        };
        let limit = 1 << 20;
        let budget = least_body_memory(limit as u64);
        let memory = BodyMemory::with_patience(budget, limit, patience);
        let mut first = memory.hold();
        first.grow(limit).await.unwrap();
        let waiting = {
            let memory = Arc::clone(&memory);
            tokio::spawn(async move { memory.hold().grow(limit).await })
        };
        while memory.lock().bodies.len() < 2 {
            tokio::task::yield_now().await;
        }
        drop(first);
        waiting.await.unwrap().unwrap();
        assert_eq!(memory.lock().held, 0);
    }

    #[tokio::test]
    async fn a_wait_has_an_end_and_a_silent_sender_makes_room() {
        let limit = 1 << 20;
        let budget = least_body_memory(limit as u64);
        let patience = |wait, slowest| BodyPatience {
            wait: Duration::from_millis(wait),
            slowest: Duration::from_millis(slowest),
        };
        let memory = BodyMemory::with_patience(budget, limit, patience(50, 20_000));
        let mut first = memory.hold();
        first.grow(limit).await.unwrap();
        let error = memory.hold().grow(limit).await.unwrap_err();
        assert_eq!(error.code, Some("body_memory_exhausted"));
        assert!(error.retry_after_s.is_some());
        drop(first);

        let memory = BodyMemory::with_patience(budget, limit, patience(20_000, 50));
        let mut silent = memory.hold();
        silent.grow(limit).await.unwrap();
        let mut second = memory.hold();
        let (lost, taken) = tokio::join!(
            async move {
                let error = silent.lost().await;
                drop(silent);
                error
            },
            second.grow(limit)
        );
        assert_eq!(lost.code, Some("body_too_slow"));
        taken.unwrap();
    }

    #[test]
    fn the_default_fits_the_machine_and_one_body() {
        let limit = 32 * MIB;
        assert_eq!(least_body_memory(limit), 160 * MIB);
        assert_eq!(default_body_memory(limit, None), 288 * MIB);
        assert_eq!(default_body_memory(limit, Some(64 << 30)), 288 * MIB);
        assert_eq!(default_body_memory(limit, Some(2 << 30)), 256 * MIB);
        assert_eq!(default_body_memory(limit, Some(1 << 20)), 160 * MIB);
    }
}
