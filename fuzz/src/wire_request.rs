//! A message from a coordinator. Work that a node accepts must fit the model and the tiles that the
//! node holds.

use ds4_common::expert::MoeShape;
use ds4_common::tiles::{Grid, Holdings, TileSet};
use ds4_proto::pb;
use ds4_proto::wire::{check_hello, decode_work, is_intact, open_request};
use prost::Message;

/// The model that the node serves.
pub const SHAPE: MoeShape = MoeShape {
    layers: 2,
    hidden: 256,
    experts_used: 2,
    grid: Grid {
        experts: 8,
        blocks: 4,
    },
};

/// The fingerprint of that model.
pub const FINGERPRINT: [u8; 32] = [7; 32];

/// `bytes` is one `ComputeRequest` as protobuf encodes it.
pub fn run(bytes: &[u8]) -> bool {
    let Ok(request) = pb::ComputeRequest::decode(bytes) else {
        return false;
    };
    let held = Holdings::uniform(SHAPE.grid, SHAPE.layers, TileSet::whole(SHAPE.grid));
    match &request.kind {
        Some(pb::compute_request::Kind::Hello(hello)) => {
            matches!(
                check_hello(&request, hello, &FINGERPRINT, &SHAPE),
                Ok(Ok(_))
            )
        }
        Some(pb::compute_request::Kind::Work(work)) => {
            let Ok(call) = decode_work(work, &SHAPE, &held) else {
                return false;
            };
            assert_eq!(call.is_intact(), is_intact(work), "one checksum, two ways");
            let batch = &call.batch;
            assert!(batch.layer < SHAPE.layers);
            assert_eq!(batch.routes.len(), batch.tokens * SHAPE.experts_used);
            assert!(batch.routes.iter().all(|r| r.expert < SHAPE.grid.experts));
            assert_eq!(batch.input.elements(), batch.tokens * SHAPE.hidden);
            assert!(
                call.rects
                    .rects()
                    .iter()
                    .all(|&r| held.covers(batch.layer, r))
            );
            true
        }
        Some(pb::compute_request::Kind::Cancel(_)) => open_request(request).is_ok(),
        None => false,
    }
}
