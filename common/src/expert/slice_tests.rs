//! Slices compute what the whole file computes, bit for bit.

use proptest::prelude::*;

use super::{
    BatchError, BatchFields, ExpertBatch, ExpertInput, ExpertScratch, ExpertStore, MoeShape, Route,
};
use crate::kernels::Kernels;
use crate::quant::GgmlType;
use crate::slice::Slice;
use crate::slice::tests::{random_holdings, whole_model, write_slice};
use crate::tiles::{Span, TileRect};

fn batch(layer: usize, seed: u64, shape: &MoeShape) -> ExpertBatch {
    let mut state = seed | 1;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(99);
        (state >> 40) as u32
    };
    let tokens = 1 + random() as usize % 4;
    let route = |expert, weight: u32| Route {
        expert,
        weight: weight as f32 / (1 << 24) as f32,
    };
    let routes = (0..tokens)
        .flat_map(|_| {
            let first = random() % 5;
            let second = (first + 1 + random() % 4) % 5;
            [route(first, random()), route(second, random())]
        })
        .collect();
    let input = (0..tokens * shape.hidden)
        .map(|_| random() as f32 / (1 << 23) as f32 - 1.0)
        .collect();
    let fields = BatchFields {
        layer,
        tokens,
        routes,
        input: ExpertInput::F32(input),
        round: !seed.is_multiple_of(3),
    };
    ExpertBatch::new(*shape, fields).expect("a legal batch")
}

fn rows(store: &ExpertStore, batch: &ExpertBatch, rect: TileRect) -> Result<Vec<u32>, BatchError> {
    let mut out = Vec::new();
    let mut scratch = ExpertScratch::default();
    store.compute(Kernels::detect(), batch, &[rect], &mut scratch, &mut out)?;
    Ok(out.into_iter().map(f32::to_bits).collect())
}

const FORMATS: [(GgmlType, usize); 6] = [
    (GgmlType::Q4K, 768),
    (GgmlType::Iq2Xxs, 512),
    (GgmlType::Q2K, 1024),
    (GgmlType::Mxfp4, 608),
    (GgmlType::Q8_0, 704),
    (GgmlType::BF16, 300),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(36))]

    #[test]
    fn any_holdings_give_the_bits_of_the_whole_file(
        seed: u64, format in prop::sample::select(&FORMATS[..]), axes in any::<[u32; 4]>(),
    ) {
        let (ty, width) = format;
        let (folder, model, tensors) = whole_model(ty, width);
        let hp = model.hyper_params();
        let holdings = random_holdings(model.grid(), hp.layers, seed);
        let path = folder.path().join("node.gguf");
        write_slice(&model, &holdings, &path);
        let whole = ExpertStore::new(hp, &tensors).unwrap();
        let part = ExpertStore::from_slice(&Slice::open(&path).unwrap()).unwrap();
        for layer in 0..hp.layers {
            let batch = batch(layer, seed, whole.shape());
            for &held in holdings.rects(layer) {
                // The rectangle itself, and one inside of it.
                let inner = |span: Span, a: u32, b: u32| {
                    let start = span.start + a % span.len();
                    Span::new(start, start + 1 + b % (span.end - start))
                };
                let inside = TileRect {
                    experts: inner(held.experts, axes[0], axes[1]),
                    blocks: inner(held.blocks, axes[2], axes[3]),
                };
                for rect in [held, inside] {
                    let want = rows(&whole, &batch, rect).unwrap();
                    prop_assert!(rows(&part, &batch, rect).unwrap() == want, "{ty} {rect}");
                }
            }
            let all = model.grid().whole();
            if holdings.rects(layer) != [all] {
                let refused = rows(&part, &batch, all);
                prop_assert_eq!(refused, Err(BatchError::NotHeld { rect: all }));
            }
        }
    }
}
