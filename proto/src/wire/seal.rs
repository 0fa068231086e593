//! Checksums of the messages that carry no bulk of numbers: over their encoding.

use ds4_common::checksum::Checksum;
use prost::Message;

use super::WireError;
use crate::pb;

/// A message with a checksum over the rest of its encoding.
pub trait Sealed: Message + Clone {
    /// What messages call it.
    const NAME: &'static str;

    /// The checksum's field.
    fn checksum(&mut self) -> &mut u64;
}

macro_rules! sealed {
    ($($message:ident $name:literal),*) => {
        $(impl Sealed for pb::$message {
            const NAME: &'static str = $name;

            fn checksum(&mut self) -> &mut u64 {
                &mut self.checksum
            }
        })*
    };
}

sealed!(
    ComputeRequest "a request",
    ComputeReply "a reply",
    DescribeReply "a description",
    MeasureReply "a measurement",
    OfferRequest "a request for a slice",
    OfferReply "an offer of a slice"
);

/// The message with its checksum.
#[must_use]
pub fn seal<M: Sealed>(mut message: M) -> M {
    *message.checksum() = of(&message);
    message
}

/// Refuses a message that was changed since it was sealed.
///
/// # Errors
/// The checksum is wrong or missing.
pub fn verify<M: Sealed>(message: &M) -> Result<(), WireError> {
    let mut found = message.clone();
    if *found.checksum() == of(message) {
        return Ok(());
    }
    Err(WireError::Checksum(M::NAME))
}

fn of<M: Sealed>(message: &M) -> u64 {
    let mut rest = message.clone();
    *rest.checksum() = 0;
    let mut sum = Checksum::new(0);
    sum.bytes(&rest.encode_to_vec());
    sum.finish()
}

/// The request with `kind`, sealed unless it is work, which has a checksum of its own.
#[must_use]
pub fn request(kind: pb::compute_request::Kind) -> pb::ComputeRequest {
    let bulk = matches!(kind, pb::compute_request::Kind::Work(_));
    let message = pb::ComputeRequest {
        kind: Some(kind),
        checksum: 0,
    };
    if bulk { message } else { seal(message) }
}

/// The reply with `kind`, sealed unless it is rows, which have a checksum of their own.
#[must_use]
pub fn reply(kind: pb::compute_reply::Kind) -> pb::ComputeReply {
    let bulk = matches!(kind, pb::compute_reply::Kind::Rows(_));
    let message = pb::ComputeReply {
        kind: Some(kind),
        checksum: 0,
    };
    if bulk { message } else { seal(message) }
}

/// What a request carries. The checksum of work is looked at where it is computed.
///
/// # Errors
/// The message was changed on its way.
pub fn open_request(
    message: pb::ComputeRequest,
) -> Result<Option<pb::compute_request::Kind>, WireError> {
    if !matches!(&message.kind, Some(pb::compute_request::Kind::Work(_))) {
        verify(&message)?;
    }
    Ok(message.kind)
}

/// What a reply carries. The checksum of rows is looked at where they are added.
///
/// # Errors
/// The message was changed on its way.
pub fn open_reply(message: pb::ComputeReply) -> Result<Option<pb::compute_reply::Kind>, WireError> {
    if !matches!(&message.kind, Some(pb::compute_reply::Kind::Rows(_))) {
        verify(&message)?;
    }
    Ok(message.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_or_unsealed_message_is_refused() {
        let cancel = |id| pb::compute_request::Kind::Cancel(pb::Cancel { id });
        let good = request(cancel(9));
        assert_eq!(open_request(good.clone()), Ok(Some(cancel(9))));
        let changed = pb::ComputeRequest {
            kind: Some(cancel(11)),
            ..good
        };
        assert_eq!(open_request(changed), Err(WireError::Checksum("a request")));
        let unsealed = pb::ComputeReply {
            kind: Some(pb::compute_reply::Kind::Failure(pb::Failure::default())),
            checksum: 0,
        };
        assert_eq!(open_reply(unsealed), Err(WireError::Checksum("a reply")));
        assert!(open_request(pb::ComputeRequest::default()).is_err());
    }

    #[test]
    fn every_flipped_bit_of_a_message_shows() {
        let offer = seal(pb::OfferRequest {
            protocol_version: 4,
            node: "node-1".to_owned(),
            ..Default::default()
        });
        let bytes = offer.encode_to_vec();
        for bit in 0..bytes.len() * 8 {
            let mut wrong = bytes.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            let Ok(read) = pb::OfferRequest::decode(wrong.as_slice()) else {
                continue;
            };
            assert!(read == offer || verify(&read).is_err(), "bit {bit}");
        }
    }
}
