//! Messages from a node: its description of itself, its welcome, and the rows that it sends.

use ds4_proto::pb;
use ds4_proto::wire::{
    ReceivedRows, bytes_from_floats, decode_node, decode_welcome, floats_from_bytes, open_reply,
};
use prost::Message;

use crate::wire_request::SHAPE;

/// The checksum of the work that rows are taken to answer.
pub const WORK: u64 = 4711;

/// `bytes` is read twice, as a `DescribeReply` and as a `ComputeReply`.
pub fn run(bytes: &[u8]) -> bool {
    let described = pb::DescribeReply::decode(bytes)
        .is_ok_and(|reply| matches!(decode_node(&reply), Ok(Ok(_))));
    let Ok(reply) = pb::ComputeReply::decode(bytes) else {
        return described;
    };
    let Ok(kind) = open_reply(reply) else {
        return described;
    };
    match kind {
        Some(pb::compute_reply::Kind::Welcome(welcome)) => {
            let Ok((in_flight, held)) = decode_welcome(&welcome, &SHAPE) else {
                return described;
            };
            assert!(in_flight > 0);
            let rects = (0..SHAPE.layers).flat_map(|layer| held.rects(layer));
            assert!(rects.into_iter().all(|r| r.check(SHAPE.grid).is_ok()));
            true
        }
        Some(pb::compute_reply::Kind::Rows(rows)) => {
            let whole = rows.rows.len() / 4 * 4;
            let mut values = vec![0.0; whole / 4];
            floats_from_bytes(&rows.rows[..whole], &mut values);
            assert_eq!(bytes_from_floats(&values), rows.rows[..whole]);
            let usable = ReceivedRows::new(rows, WORK).check();
            assert!(usable.is_err() || values.iter().all(|value| value.is_finite()));
            true
        }
        Some(pb::compute_reply::Kind::Failure(_)) => true,
        None => described,
    }
}
