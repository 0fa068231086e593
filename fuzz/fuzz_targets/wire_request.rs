//! Work that a node takes must fit the model and what it holds.
#![no_main]

use ds4_common::expert::MoeShape;
use ds4_common::tiles::{Grid, Holdings, TileSet};
use ds4_proto::pb;
use ds4_proto::wire::{check_hello, decode_work};
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
    let Ok(request) = pb::ComputeRequest::decode(bytes) else {
        return;
    };
    let held = Holdings::uniform(SHAPE.grid, SHAPE.layers, TileSet::whole(SHAPE.grid));
    match request.kind {
        Some(pb::compute_request::Kind::Hello(hello)) => {
            drop(check_hello(&hello, &[7; 32], &SHAPE))
        }
        Some(pb::compute_request::Kind::Work(work)) => {
            let Ok(call) = decode_work(&work, &SHAPE, &held) else {
                return;
            };
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
        }
        _ => {}
    }
});
