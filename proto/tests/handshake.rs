//! Hello, welcome and description: both sides' values, versions, and what is damaged on its way.

use bytes::Bytes;
use ds4_common::expert::MoeShape;
use ds4_common::tiles::{Grid, Holdings, TileSet};
use ds4_proto::limits::PROTOCOL_VERSION;
use ds4_proto::pb;
use ds4_proto::wire::{
    Mismatch, Versions, WireError, check_hello, decode_node, decode_welcome, encode_tiles, hello,
    request, seal, verify, welcome,
};

const SHAPE: MoeShape = MoeShape {
    layers: 3,
    hidden: 512,
    experts_used: 2,
    grid: Grid {
        experts: 8,
        blocks: 4,
    },
};

fn whole() -> TileSet {
    TileSet::whole(SHAPE.grid)
}

fn held() -> Holdings {
    Holdings::uniform(SHAPE.grid, SHAPE.layers, whole())
}

/// A node's check of a hello that came as it was sent.
fn greet(
    greeting: &pb::Hello,
    ours: [u8; 32],
    shape: &MoeShape,
) -> Result<Result<u32, Mismatch>, WireError> {
    let first = request(pb::compute_request::Kind::Hello(greeting.clone()));
    check_hello(&first, greeting, &ours, shape)
}

#[test]
fn the_handshake_names_both_sides() {
    let mut greeting = hello(&[7; 32], &SHAPE, PROTOCOL_VERSION);
    assert_eq!(greet(&greeting, [7; 32], &SHAPE), Ok(Ok(PROTOCOL_VERSION)));
    let other = greet(&greeting, [8; 32], &SHAPE)
        .expect("well formed")
        .expect_err("mismatch");
    assert!(other.to_string().contains(&"07".repeat(32)), "{other}");
    assert!(other.to_string().contains(&"08".repeat(32)), "{other}");
    let more = MoeShape {
        experts_used: 6,
        ..SHAPE
    };
    assert_eq!(
        greet(&greeting, [7; 32], &more),
        Ok(Err(Mismatch::ExpertsUsed {
            node: 6,
            coordinator: 2
        }))
    );
    let newer = Versions {
        oldest: PROTOCOL_VERSION + 1,
        newest: PROTOCOL_VERSION + 2,
    };
    greeting.protocol_version = newer.newest;
    greeting.oldest_version = newer.oldest;
    assert_eq!(
        greet(&greeting, [8; 32], &SHAPE),
        Ok(Err(Mismatch::Version {
            node: Versions::OURS,
            coordinator: newer
        }))
    );
    let mut short = hello(&[7; 32], &SHAPE, PROTOCOL_VERSION);
    short.fingerprint = Bytes::from_static(b"short");
    assert!(greet(&short, [7; 32], &SHAPE).is_err());
}

#[test]
fn a_damaged_hello_is_no_other_model() {
    let sent = request(pb::compute_request::Kind::Hello(hello(
        &[7; 32],
        &SHAPE,
        PROTOCOL_VERSION,
    )));
    let damaged = hello(&[6; 32], &SHAPE, PROTOCOL_VERSION);
    let first = pb::ComputeRequest {
        kind: Some(pb::compute_request::Kind::Hello(damaged.clone())),
        ..sent
    };
    let refusal = check_hello(&first, &damaged, &[7; 32], &SHAPE);
    assert_eq!(refusal, Err(WireError::Checksum("a request")));
}

/// Before version 4 nothing had a checksum, and the version before that stated no range.
#[test]
fn peers_without_checksums_are_refused_by_version() {
    for before in [2, 3] {
        let silent = pb::Hello {
            protocol_version: before,
            oldest_version: 0,
            ..hello(&[7; 32], &SHAPE, before)
        };
        let first = pb::ComputeRequest {
            kind: Some(pb::compute_request::Kind::Hello(silent.clone())),
            checksum: 0,
        };
        let coordinator = Versions::of(0, before);
        assert_eq!(
            check_hello(&first, &silent, &[7; 32], &SHAPE),
            Ok(Err(Mismatch::Version {
                node: Versions::OURS,
                coordinator
            }))
        );
        let node = pb::DescribeReply {
            protocol_version: before,
            checksum: 0,
            ..description()
        };
        let refusal = decode_node(&node).expect("well formed").expect_err("old");
        assert_eq!(
            refusal.to_string(),
            format!(
                "the node speaks protocol version {before}, the coordinator version \
                 {PROTOCOL_VERSION}"
            )
        );
    }
    let silent = pb::DescribeRequest::default();
    assert_eq!(Versions::of_description(&silent), PROTOCOL_VERSION);
    let later = pb::DescribeRequest {
        newest_version: PROTOCOL_VERSION + 1,
        oldest_version: PROTOCOL_VERSION,
    };
    assert_eq!(Versions::of_description(&later), PROTOCOL_VERSION);
}

#[test]
fn layers_that_differ_travel_in_a_welcome() {
    let mut rects = vec![vec![SHAPE.grid.whole()]; SHAPE.layers];
    rects[1].clear();
    let layered = Holdings::new(SHAPE.grid, rects).expect("holdings");
    let answer = welcome(4, &layered);
    assert_eq!(decode_welcome(&answer, &SHAPE), Ok((4, layered)));
    assert_eq!(welcome(4, &held()).held, encode_tiles(&whole()));
}

fn description() -> pb::DescribeReply {
    pb::DescribeReply {
        protocol_version: PROTOCOL_VERSION,
        fingerprint: vec![0; 32].into(),
        layers: SHAPE.layers as u32,
        hidden: SHAPE.hidden as u32,
        used: SHAPE.experts_used as u32,
        grid_experts: SHAPE.grid.experts,
        grid_blocks: SHAPE.grid.blocks,
        ..Default::default()
    }
}

#[test]
fn a_description_of_absurd_size_is_refused() {
    let reply = pb::DescribeReply {
        grid_experts: u32::MAX,
        held: encode_tiles(&whole()),
        ..description()
    };
    assert!(verify(&reply).is_err(), "it is not sealed");
    let refusal = decode_node(&seal(reply)).expect_err("absurd");
    assert!(refusal.to_string().contains("experts"), "{refusal}");
}
