//! The wire checks against arbitrary bytes, lying counts, and exact round trips.

use std::time::Duration;

use bytes::Bytes;
use ds4_common::expert::{BatchFields, ExpertBatch, ExpertInput, MoeShape, Route};
use ds4_common::quant::{BlockQ8, BlockQ8K};
use ds4_common::tiles::{Grid, Holdings, TileRect, TileSet};
use ds4_proto::limits::MAX_TOKENS;
use ds4_proto::pb;
use ds4_proto::wire::{
    DecodedWork, EncodedBatch, WireError, bytes_from_floats, check_hello, checksum_of_work,
    decode_node, decode_welcome, decode_work, floats_from_bytes, is_intact,
};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

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
    TileSet::new(SHAPE.grid, vec![SHAPE.grid.whole()]).expect("whole grid")
}

fn held() -> Holdings {
    Holdings::uniform(SHAPE.grid, SHAPE.layers, whole())
}

fn any_float() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits)
}

fn q8k() -> impl Strategy<Value = BlockQ8K> {
    (any_float(), vec(any::<i8>(), 256)).prop_map(|(d, q)| {
        let q: [i8; 256] = q.try_into().expect("256 values");
        let mut bsums = [0; 16];
        for (i, v) in q.iter().enumerate() {
            bsums[i / 16] += i16::from(*v);
        }
        BlockQ8K { d, q, bsums }
    })
}

fn q8() -> impl Strategy<Value = BlockQ8> {
    (any_float(), vec(any::<i8>(), 32)).prop_map(|(d, q)| BlockQ8 {
        d,
        q: q.try_into().expect("32 values"),
    })
}

fn batch() -> impl Strategy<Value = ExpertBatch> {
    (1usize..5, 0..SHAPE.layers, any::<bool>()).prop_flat_map(|(tokens, layer, round)| {
        let experts_used = SHAPE.experts_used;
        let input = prop_oneof![
            vec(any_float(), tokens * SHAPE.hidden).prop_map(ExpertInput::F32),
            vec(q8(), tokens * SHAPE.hidden / 32).prop_map(ExpertInput::Q8),
            vec(q8k(), tokens * SHAPE.hidden / 256).prop_map(ExpertInput::Q8K),
        ];
        let route = (0..SHAPE.grid.experts, any_float())
            .prop_map(|(expert, weight)| Route { expert, weight });
        (vec(route, tokens * experts_used), input).prop_map(move |(routes, input)| {
            let fields = BatchFields {
                layer,
                tokens,
                routes,
                input,
                round,
            };
            ExpertBatch::new(SHAPE, fields).expect("a legal batch")
        })
    })
}

/// Everything of a batch as integers, since NaN is not equal to itself.
fn bits(batch: &ExpertBatch) -> (Vec<usize>, Vec<u32>, Vec<i32>) {
    let counts = vec![
        batch.layer,
        batch.tokens,
        batch.shape().experts_used,
        usize::from(batch.round),
    ];
    let mut floats: Vec<u32> = batch.routes.iter().map(|r| r.weight.to_bits()).collect();
    let mut ints: Vec<i32> = batch.routes.iter().map(|r| r.expert as i32).collect();
    match &batch.input {
        ExpertInput::F32(v) => floats.extend(v.iter().map(|x| x.to_bits())),
        ExpertInput::Q8(v) => v.iter().for_each(|b| {
            floats.push(b.d.to_bits());
            ints.extend(b.q.map(i32::from));
        }),
        ExpertInput::Q8K(v) => v.iter().for_each(|b| {
            floats.push(b.d.to_bits());
            ints.extend(b.q.map(i32::from));
            ints.extend(b.bsums.map(i32::from));
        }),
    }
    (counts, floats, ints)
}

/// The message as the node receives it: encoded and decoded.
fn travel(work: &pb::Work) -> pb::Work {
    pb::Work::decode(work.encode_to_vec().as_slice()).expect("own encoding")
}

fn some_work() -> pb::Work {
    let fields = BatchFields {
        layer: 1,
        tokens: 2,
        routes: [0, 7, 3, 1]
            .map(|expert| Route {
                expert,
                weight: 0.5,
            })
            .to_vec(),
        input: ExpertInput::F32(vec![1.0; 2 * SHAPE.hidden]),
        round: true,
    };
    let batch = ExpertBatch::new(SHAPE, fields).expect("a legal batch");
    EncodedBatch::new(&batch, 0..2).work(9, &whole(), Duration::from_secs(1))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_call_arrives_bit_for_bit(batch in batch(), id in any::<u64>()) {
        let work = EncodedBatch::new(&batch, 0..batch.tokens)
            .work(id, &whole(), Duration::from_millis(1500));
        let call = decode_work(&travel(&work), &SHAPE, &held()).expect("valid work");
        prop_assert_eq!(call.id, id);
        prop_assert_eq!(call.deadline, Duration::from_millis(1500));
        prop_assert_eq!(&call.rects, &whole());
        prop_assert_eq!(call.batch.input.format(), batch.input.format());
        prop_assert_eq!(bits(&call.batch), bits(&batch));
        prop_assert!(call.is_intact() && is_intact(&work));
    }

    #[test]
    fn parts_of_a_batch_are_its_tokens(batch in batch()) {
        for token in 0..batch.tokens {
            let work = EncodedBatch::new(&batch, token..token + 1)
                .work(1, &whole(), Duration::from_secs(1));
            let part = decode_work(&travel(&work), &SHAPE, &held()).expect("valid work").batch;
            let weights = |routes: &[Route]| -> Vec<(u32, u32)> {
                routes.iter().map(|r| (r.expert, r.weight.to_bits())).collect()
            };
            prop_assert_eq!(weights(part.routes_of(0)), weights(batch.routes_of(token)));
            let whole_bits = bits(&batch);
            let floats = &whole_bits.1[batch.routes.len()..];
            let per = floats.len() / batch.tokens;
            prop_assert_eq!(&bits(&part).1[SHAPE.experts_used..], &floats[token * per..(token + 1) * per]);
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_decoded_but_never_panic(raw in vec(any::<u8>(), 0..400)) {
        if let Ok(work) = pb::Work::decode(raw.as_slice()) {
            let _ = decode_work(&work, &SHAPE, &held());
        }
        if let Ok(reply) = pb::DescribeReply::decode(raw.as_slice()) {
            let _ = decode_node(&reply);
        }
        if let Ok(welcome) = pb::Welcome::decode(raw.as_slice()) {
            let _ = decode_welcome(&welcome, &SHAPE);
        }
        if let Ok(hello) = pb::Hello::decode(raw.as_slice()) {
            let first = pb::ComputeRequest::default();
            let _ = check_hello(&first, &hello, &[0; 32], &SHAPE);
        }
        let _ = pb::ComputeReply::decode(raw.as_slice());
    }

    #[test]
    fn valid_work_with_flipped_bytes_never_panics(
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
    ) {
        let mut raw = some_work().encode_to_vec();
        for (at, value) in flips {
            let at = at.index(raw.len());
            raw[at] = value;
        }
        if let Ok(work) = pb::Work::decode(raw.as_slice())
            && let Ok(DecodedWork { batch, .. }) = decode_work(&work, &SHAPE, &held())
        {
            let fields = BatchFields::clone(&batch);
            prop_assert_eq!(ExpertBatch::new(SHAPE, fields).map(|_| ()), Ok(()));
        }
    }

    #[test]
    fn arbitrary_fields_are_checked(
        counts in (any::<u64>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>()),
        format in -1i32..5,
        routes in vec(any::<u8>(), 0..64),
        input in vec(any::<u8>(), 0..64),
        rects in vec(any::<u8>(), 0..64),
    ) {
        let (id, layer, tokens, used, deadline_ms) = counts;
        let work = pb::Work {
            id,
            layer,
            tokens,
            used,
            routes: routes.into(),
            format,
            round: false,
            rects: rects.into(),
            deadline_ms,
            input: input.into(),
            checksum: 0,
        };
        prop_assert!(decode_work(&work, &SHAPE, &held()).is_err());
    }

    #[test]
    fn rows_round_trip(values in vec(any_float(), 0..300)) {
        let bytes = bytes_from_floats(&values);
        let mut back = vec![0.0; values.len()];
        floats_from_bytes(&bytes, &mut back);
        let bits = |v: &[f32]| -> Vec<u32> { v.iter().map(|x| x.to_bits()).collect() };
        prop_assert_eq!(bits(&back), bits(&values));
    }
}

/// Applies `change` to valid work and returns the refusal.
fn refusal(change: impl FnOnce(&mut pb::Work)) -> WireError {
    let mut work = some_work();
    decode_work(&work, &SHAPE, &held()).expect("valid before the change");
    change(&mut work);
    decode_work(&work, &SHAPE, &held()).expect_err("refused")
}

#[test]
fn counts_that_lie_are_named() {
    let text = |e: WireError| e.to_string();
    let wide: Vec<u8> = [0u32, 9, 0, 4].map(u32::to_le_bytes).concat();
    assert!(text(refusal(|w| w.tokens = 3)).contains("routes"));
    assert!(text(refusal(|w| w.tokens = 0)).contains("tokens is 0"));
    assert!(text(refusal(|w| w.tokens = MAX_TOKENS as u32 + 1)).contains("tokens is 513"));
    assert!(text(refusal(|w| w.used = 0)).contains("0 experts per token"));
    let doubled = text(refusal(|w| {
        w.used = 4;
        w.routes = [&w.routes[..], &w.routes[..]].concat().into();
    }));
    assert!(doubled.contains("4 experts per token") && doubled.contains("chooses 2"));
    assert!(text(refusal(|w| w.layer = 3)).contains("layer 3"));
    assert!(text(refusal(|w| w.format = 0)).contains("format"));
    assert!(text(refusal(|w| w.deadline_ms = 0)).contains("deadline_ms"));
    assert!(text(refusal(|w| w.input = w.input.slice(1..))).contains("input"));
    assert!(text(refusal(|w| w.format = pb::InputFormat::Q8k.into())).contains("input"));
    assert!(text(refusal(|w| w.rects.clear())).contains("rectangles"));
    assert!(text(refusal(|w| w.rects = w.rects.repeat(2).into())).contains("twice"));
    assert!(text(refusal(|w| w.rects = wide.into())).contains("outside"));
    assert!(text(refusal(|w| w.rects = w.rects.slice(3..))).contains("13 bytes"));
    let mut routes = some_work().routes.to_vec();
    routes[0] = 8;
    let routes = Bytes::from(routes);
    assert!(text(refusal(|w| w.routes = routes)).contains("expert 8"));
}

#[test]
fn tiles_that_are_not_held_are_refused() {
    let halves = SHAPE.grid.cut(2, 1).expect("cut");
    let whole = SHAPE.grid.whole();
    let refusal = |rects: Vec<Vec<TileRect>>| {
        let held = Holdings::new(SHAPE.grid, rects).expect("holdings");
        decode_work(&some_work(), &SHAPE, &held).expect_err("refused")
    };
    let not_held = WireError::NotHeld {
        rect: whole,
        layer: some_work().layer,
    };
    assert_eq!(refusal(vec![vec![halves[0]]; 3]), not_held);
    assert_eq!(refusal(vec![halves; 3]), not_held, "two pieces");
    let mut elsewhere = vec![vec![whole]; 3];
    elsewhere[some_work().layer as usize].clear();
    assert_eq!(refusal(elsewhere), not_held);
}

#[test]
fn work_whose_rows_would_not_fit_a_reply_is_refused() {
    let shape = MoeShape {
        hidden: 1 << 19,
        experts_used: 1,
        ..SHAPE
    };
    let fields = BatchFields {
        layer: 0,
        tokens: 16,
        routes: vec![
            Route {
                expert: 0,
                weight: 1.0
            };
            16
        ],
        input: ExpertInput::Q8(vec![BlockQ8 { d: 0.0, q: [0; 32] }; 16 * shape.hidden / 32]),
        round: false,
    };
    let batch = ExpertBatch::new(shape, fields).expect("a legal batch");
    let rects = TileSet::new(shape.grid, shape.grid.cut(8, 4).expect("cut")).expect("set");
    let work = EncodedBatch::new(&batch, 0..16).work(1, &rects, Duration::from_secs(1));
    let refusal = decode_work(&work, &shape, &held()).expect_err("refused");
    assert!(
        matches!(refusal, WireError::Reply { subtrees: 32, .. }),
        "{refusal}"
    );
}

#[test]
fn any_flipped_bit_of_work_shows_in_the_message_and_in_what_it_decodes_to() {
    let work = some_work();
    let bytes = work.encode_to_vec();
    for bit in (0..bytes.len() * 8).step_by(3) {
        let mut wrong = bytes.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        let Ok(read) = pb::Work::decode(wrong.as_slice()) else {
            continue;
        };
        if read == work {
            continue;
        }
        assert!(!is_intact(&read), "bit {bit}");
        if let Ok(call) = decode_work(&read, &SHAPE, &held()) {
            assert!(!call.is_intact(), "bit {bit}");
        }
    }
    let mut other = work.clone();
    other.id += 1;
    assert!(!is_intact(&other), "work is bound to its id");
    other.checksum = checksum_of_work(&other);
    assert!(is_intact(&other));
}

#[test]
fn a_flip_in_the_memory_of_a_node_shows_in_decoded_work() {
    let work = EncodedBatch::new(&q8k_batch(), 0..1).work(9, &whole(), Duration::from_secs(1));
    let decoded = || decode_work(&work, &SHAPE, &held()).expect("valid");
    assert!(decoded().is_intact());
    let flips: [fn(&mut BatchFields); 4] = [
        |fields| fields.routes[1].weight += 1e-3,
        |fields| fields.routes[0].expert ^= 1,
        |fields| q8k_blocks(fields)[1].q[17] ^= 1,
        |fields| q8k_blocks(fields)[0].bsums[3] ^= 1,
    ];
    for (i, flip) in flips.iter().enumerate() {
        let mut call = decoded();
        let mut fields = BatchFields::clone(&call.batch);
        flip(&mut fields);
        call.batch = ExpertBatch::new(SHAPE, fields).expect("a legal batch");
        assert!(!call.is_intact(), "flip {i}");
    }
}

fn q8k_batch() -> ExpertBatch {
    let mut blocks = vec![BlockQ8K::ZERO; SHAPE.hidden / 256];
    let values: Vec<f32> = (0..SHAPE.hidden).map(|i| (i % 9) as f32 - 4.0).collect();
    ds4_common::quant::quantize_q8_k(&values, &mut blocks);
    let fields = BatchFields {
        layer: 1,
        tokens: 1,
        routes: [0, 7]
            .map(|expert| Route {
                expert,
                weight: 0.5,
            })
            .to_vec(),
        input: ExpertInput::Q8K(blocks),
        round: true,
    };
    ExpertBatch::new(SHAPE, fields).expect("a legal batch")
}

fn q8k_blocks(fields: &mut BatchFields) -> &mut [BlockQ8K] {
    match &mut fields.input {
        ExpertInput::Q8K(blocks) => blocks,
        _ => panic!("the batch has such blocks"),
    }
}
