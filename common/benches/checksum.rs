//! What checksums and the search for infinity and NaN cost, at the sizes that travel:
//! `cargo bench -p ds4-common --bench checksum`.
//!
//! The bytes of one token are 4,672 of activations with 4,096 values in blocks of 256 and routes,
//! and 16,384 of a row; 512 tokens have 8 MiB of rows.

use divan::Bencher;
use divan::counter::BytesCount;
use ds4_common::checksum::{Checksum, all_finite};
use ds4_common::expert::{BatchFields, ExpertBatch, ExpertInput, MoeShape, Route};
use ds4_common::quant::{BlockQ8K, quantize_q8_k};
use ds4_common::tiles::Grid;

const HIDDEN: usize = 4096;

/// Floats of a row, of seven thousand values, of a token's rows at six experts, and of 512 rows.
const FLOATS: [usize; 4] = [HIDDEN, 7168, 6 * HIDDEN, 512 * HIDDEN];

fn main() {
    divan::main();
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.37).sin()).collect()
}

/// The node's part: over the rows as they are computed.
#[divan::bench(args = FLOATS)]
fn rows_computed(bencher: Bencher, floats: usize) {
    let rows = values(floats);
    bencher.counter(BytesCount::new(floats * 4)).bench(|| {
        let mut sum = Checksum::new(7);
        sum.floats(divan::black_box(&rows));
        sum.finish()
    });
}

/// The coordinator's part: over the rows as they came, infinity and NaN included.
#[divan::bench(args = FLOATS)]
fn rows_received(bencher: Bencher, floats: usize) {
    let rows: Vec<u8> = values(floats)
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    bencher.counter(BytesCount::new(rows.len())).bench(|| {
        let mut sum = Checksum::new(7);
        let finite = sum.wire_floats(divan::black_box(&rows));
        (sum.finish(), finite)
    });
}

/// The engine's part: its activations before the experts.
#[divan::bench(args = FLOATS)]
fn activations_finite(bencher: Bencher, floats: usize) {
    let activations = values(floats);
    bencher
        .counter(BytesCount::new(floats * 4))
        .bench(|| all_finite(divan::black_box(&activations)));
}

/// Both sides' part: over the activations and routes of a call.
#[divan::bench(args = [1, 8, 512])]
fn call(bencher: Bencher, tokens: usize) {
    let mut blocks = vec![BlockQ8K::ZERO; tokens * HIDDEN / 256];
    quantize_q8_k(&values(tokens * HIDDEN), &mut blocks);
    let shape = MoeShape {
        layers: 1,
        hidden: HIDDEN,
        experts_used: 6,
        grid: Grid {
            experts: 256,
            blocks: 8,
        },
    };
    let route = |i: usize| Route {
        expert: (i * 37) as u32 % 256,
        weight: 0.3,
    };
    let fields = BatchFields {
        layer: 0,
        tokens,
        routes: (0..tokens * 6).map(route).collect(),
        input: ExpertInput::Q8K(blocks),
        round: true,
    };
    let batch = ExpertBatch::new(shape, fields).expect("a legal batch");
    let bytes = tokens * (HIDDEN / 256 * 260 + 6 * 8);
    bencher
        .counter(BytesCount::new(bytes))
        .bench(|| divan::black_box(&batch).checksum(0..tokens));
}
