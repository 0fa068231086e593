//! What the calls of all coordinators may keep in memory.
//!
//! What arrives is outside of this budget: one message of each stream, whose buffer exists before
//! anything about it is known, and what a connection may send unread. Both are bounded by their
//! numbers: `MAX_SESSIONS` streams of at most [`request_bytes`] (8.5 MB with Flash's widths, so
//! 0.5 GB), and [`MAX_CONNECTIONS`] connections of at most [`CONNECTION_WINDOW`].
//!
//! [`request_bytes`]: ds4_proto::wire::request_bytes
//! [`MAX_CONNECTIONS`]: ds4_proto::limits::MAX_CONNECTIONS
//! [`CONNECTION_WINDOW`]: ds4_proto::limits::CONNECTION_WINDOW

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one permit; a semaphore of single bytes could not lend a large call at once.
const UNIT: usize = 1024;

/// A node's budget for the inputs of accepted calls and for unsent replies.
#[derive(Debug)]
pub(crate) struct CallMemory {
    units: Arc<Semaphore>,
    total: usize,
}

/// A call's part of the budget; it returns when this is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    _units: OwnedSemaphorePermit,
}

/// Why a call gets no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoRoom {
    #[error("all memory for calls is in use")]
    Now,
    #[error("the call needs {bytes} bytes, this node keeps {total} for all calls together")]
    TooLarge { bytes: usize, total: usize },
}

impl CallMemory {
    pub(crate) fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT).min(Semaphore::MAX_PERMITS);
        CallMemory {
            units: Arc::new(Semaphore::new(units)),
            total: units * UNIT,
        }
    }

    /// Room for `bytes`, without waiting.
    pub(crate) fn take(&self, bytes: usize) -> Result<Room, NoRoom> {
        let total = self.total;
        let units = u32::try_from(bytes.div_ceil(UNIT).max(1))
            .ok()
            .filter(|units| *units as usize <= total / UNIT)
            .ok_or(NoRoom::TooLarge { bytes, total })?;
        let taken = Arc::clone(&self.units).try_acquire_many_owned(units);
        let _units = taken.map_err(|_| NoRoom::Now)?;
        Ok(Room { _units })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_lent_until_it_is_dropped() {
        let memory = CallMemory::new(10 * UNIT);
        let most = memory.take(9 * UNIT - 1).expect("room");
        let rest = memory.take(0).expect("room for the smallest call");
        assert_eq!(memory.take(1).err(), Some(NoRoom::Now));
        drop(rest);
        memory.take(UNIT).expect("returned");
        drop(most);
        memory.take(10 * UNIT).expect("all of it");
        let found = memory.take(10 * UNIT + 1).err();
        let bytes = 10 * UNIT + 1;
        let total = 10 * UNIT;
        assert_eq!(found, Some(NoRoom::TooLarge { bytes, total }));
    }
}
