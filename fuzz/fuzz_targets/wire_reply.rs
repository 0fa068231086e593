//! What a node says of itself, and the rows that it sends.
#![no_main]

use ds4_common::expert::MoeShape;
use ds4_common::tiles::Grid;
use ds4_proto::pb;
use ds4_proto::wire::{bytes_from_floats, decode_node, decode_welcome, floats_from_bytes};
use libfuzzer_sys::fuzz_target;
use prost::Message;

const SHAPE: MoeShape = MoeShape {
    layers: 2,
    hidden: 256,
    experts_used: 2,
    grid: Grid {
        experts: 8,
        blocks: 4,
    },
};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(reply) = pb::DescribeReply::decode(bytes) {
        drop(decode_node(&reply));
    }
    let Ok(reply) = pb::ComputeReply::decode(bytes) else {
        return;
    };
    match reply.kind {
        Some(pb::compute_reply::Kind::Welcome(welcome)) => {
            if let Ok((in_flight, held)) = decode_welcome(&welcome, &SHAPE) {
                assert!(in_flight > 0);
                let rects = (0..SHAPE.layers).flat_map(|layer| held.rects(layer));
                assert!(rects.into_iter().all(|r| r.check(SHAPE.grid).is_ok()));
            }
        }
        Some(pb::compute_reply::Kind::Rows(rows)) => {
            let whole = rows.rows.len() / 4 * 4;
            let mut values = vec![0.0; whole / 4];
            floats_from_bytes(&rows.rows[..whole], &mut values);
            assert_eq!(bytes_from_floats(&values), rows.rows[..whole]);
        }
        _ => {}
    }
});
