//! The rows of a call with their checksum: made by the node's compute thread, checked by the thread
//! that adds them.

use bytes::Bytes;
use ds4_common::checksum::Checksum;

use super::bytes_from_floats;
use crate::pb;

/// Checksum of rows that were computed for the work with the checksum `work`.
#[must_use]
pub fn rows_checksum(rows: &[f32], work: u64) -> u64 {
    let mut sum = Checksum::new(work);
    sum.floats(rows);
    sum.finish()
}

/// The message with the rows of work `id`; `checksum` is [`rows_checksum`] of what was computed.
#[must_use]
pub fn rows_message(
    id: u64,
    rows: &[f32],
    checksum: u64,
    queue_us: u64,
    compute_us: u64,
) -> pb::Rows {
    pb::Rows {
        id,
        rows: bytes_from_floats(rows),
        queue_us,
        compute_us,
        checksum: message_checksum(checksum, id, queue_us, compute_us),
    }
}

fn message_checksum(rows: u64, id: u64, queue_us: u64, compute_us: u64) -> u64 {
    let mut sum = Checksum::new(rows);
    for number in [id, queue_us, compute_us] {
        sum.number(number);
    }
    sum.finish()
}

/// Rows as they came, with what they have to agree with.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedRows {
    message: pb::Rows,
    /// Checksum of the work that they answer.
    work: u64,
}

/// Why rows may not be used. The texts complete a sentence about the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowsFault {
    /// They, or what belongs to them, were changed after they were computed.
    #[error("the rows do not have the checksum that it computed")]
    Checksum,
    /// They are what the node computed, but some are infinite or NaN; holds a checksum of their
    /// bits alone.
    #[error("its rows are not finite")]
    NotFinite(u64),
}

impl ReceivedRows {
    /// Rows that answer the work with the checksum `work`.
    #[must_use]
    pub fn new(message: pb::Rows, work: u64) -> Self {
        ReceivedRows { message, work }
    }

    /// The rows as little-endian floats, once they are known to be right and finite.
    ///
    /// # Errors
    /// They are not.
    pub fn check(self) -> Result<Bytes, RowsFault> {
        let pb::Rows {
            id,
            rows,
            queue_us,
            compute_us,
            checksum,
        } = self.message;
        let mut sum = Checksum::new(self.work);
        let finite = sum.wire_floats(&rows);
        if message_checksum(sum.finish(), id, queue_us, compute_us) != checksum {
            return Err(RowsFault::Checksum);
        }
        if !finite {
            let mut bits = Checksum::new(0);
            bits.bytes(&rows);
            return Err(RowsFault::NotFinite(bits.finish()));
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(rows: &[f32], work: u64) -> pb::Rows {
        rows_message(7, rows, rows_checksum(rows, work), 20, 300)
    }

    #[test]
    fn rows_are_bound_to_their_work_and_to_each_bit() {
        let rows = [1.0, -2.5, 0.0, 4.25];
        let right = message(&rows, 5);
        let check = |message, work| ReceivedRows::new(message, work).check();
        assert_eq!(check(right.clone(), 5), Ok(bytes_from_floats(&rows)));
        assert_eq!(
            check(right.clone(), 6),
            Err(RowsFault::Checksum),
            "other work"
        );
        for bit in 0..rows.len() * 32 {
            let mut bytes = right.rows.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let rows = bytes.into();
            let changed = pb::Rows {
                rows,
                ..right.clone()
            };
            assert_eq!(check(changed, 5), Err(RowsFault::Checksum), "bit {bit}");
        }
        let lies: [fn(&mut pb::Rows); 4] = [
            |rows| rows.id += 1,
            |rows| rows.queue_us += 1,
            |rows| rows.compute_us += 1,
            |rows| rows.checksum = 0,
        ];
        for lie in lies {
            let mut changed = right.clone();
            lie(&mut changed);
            assert_eq!(check(changed, 5), Err(RowsFault::Checksum));
        }
    }

    #[test]
    fn what_a_node_computed_wrong_is_told_from_what_was_changed_later() {
        let rows = [1.0, f32::NAN];
        let computed = message(&rows, 5);
        let check = |message| ReceivedRows::new(message, 5).check();
        assert!(matches!(
            check(computed.clone()),
            Err(RowsFault::NotFinite(_))
        ));
        let changed = pb::Rows {
            rows: bytes_from_floats(&[1.0, f32::INFINITY]),
            ..computed
        };
        assert_eq!(check(changed), Err(RowsFault::Checksum));
    }
}
