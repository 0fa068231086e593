//! Products of dense layers and of routed experts at the widths of the Flash model.
//!
//! `cargo bench -p ds4-common` measures every instruction set of the machine on all its cores.
//! Throughput is in bytes of weights at one token, and in products where many tokens share them.
//! The matrices are larger than a core's own cache, but a shared cache may hold them: see
//! `ds4-expert bench` and `ds4-coord bench` for weights that come from memory.

use std::hint::black_box;
use std::time::Duration;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, Divan};
use ds4_common::kernels::{Activations, Kernels, Matrix};
use ds4_common::quant::{GgmlType, Layout, to_panels};

/// Rows and columns of a query projection.
const SHAPE: (usize, usize) = (8192, 4096);

/// Rows that a batch is multiplied with: enough for every core, and soon done.
const BATCH_ROWS: usize = 1024;

/// Time for one figure, so that all of them are soon done.
const LONGEST: Duration = Duration::from_secs(1);

fn main() {
    Divan::default().max_time(LONGEST).config_with_args().main();
}

/// Instruction sets by name, without the scalar one, which would take minutes.
fn sets() -> Vec<&'static str> {
    let fast = |k: &Kernels| k.name() != "scalar";
    Kernels::available()
        .iter()
        .filter(|k| fast(k))
        .map(|k| k.name())
        .collect()
}

fn kernels(name: &str) -> Kernels {
    Kernels::named(name).unwrap_or_else(|error| panic!("{error}"))
}

/// Bytes that change from one to the next; scales are finite and small.
fn weights(ty: GgmlType, rows: usize, cols: usize) -> Vec<u8> {
    let len = rows * cols / ty.block_elements() * ty.block_bytes();
    let mut state = 1_u32;
    let mut bytes: Vec<u8> = (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    let halves = match ty {
        GgmlType::Q4K => 2,
        _ => 1,
    };
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        for half in block.chunks_exact_mut(2).take(halves) {
            half[1] = half[1] & 0x83 | 0x20;
        }
    }
    bytes
}

fn activations(ty: GgmlType, cols: usize, tokens: usize) -> Activations {
    let values: Vec<f32> = (0..tokens * cols)
        .map(|i| ((i * 37 % 1009) as f32 - 504.0) / 504.0)
        .collect();
    let mut activations = Activations::new();
    activations.set(ty.activation_format(), cols, &values);
    activations
}

fn one_token(bencher: Bencher<'_, '_>, ty: GgmlType, set: &str) {
    let (rows, cols) = SHAPE;
    let bytes = weights(ty, rows, cols);
    let x = activations(ty, cols, 1);
    let mut out = vec![0.0; rows];
    bencher
        .counter(BytesCount::new(bytes.len()))
        .bench_local(|| {
            let w = Matrix::new(ty, rows, cols, &bytes).unwrap_or_else(|e| panic!("{e}"));
            kernels(set).matmul(&w, &x, black_box(&mut out));
        });
}

fn many_tokens(bencher: Bencher<'_, '_>, ty: GgmlType, set: &str, tokens: usize) {
    let (rows, cols) = (BATCH_ROWS, SHAPE.1);
    let bytes = weights(ty, rows, cols);
    let x = activations(ty, cols, tokens);
    let mut out = vec![0.0; rows * tokens];
    bencher
        .counter(ItemsCount::new(rows * cols * tokens))
        .bench_local(|| {
            let w = Matrix::new(ty, rows, cols, &bytes).unwrap_or_else(|e| panic!("{e}"));
            kernels(set).matmul(&w, &x, black_box(&mut out));
        });
}

/// What the same threads read in a plain loop: the limit of the products with one token.
#[divan::bench(args = sets())]
fn read(bencher: Bencher<'_, '_>, set: &str) {
    let bytes = weights(GgmlType::Q8_0, SHAPE.0, SHAPE.1);
    bencher
        .counter(BytesCount::new(bytes.len()))
        .bench_local(|| kernels(set).read_on_all_threads(black_box(&bytes)));
}

/// Pairs of bytes that the same threads multiply in registers: the limit of the products with
/// many tokens.
#[divan::bench(args = sets())]
fn multiply(bencher: Bencher<'_, '_>, set: &str) {
    const ROUNDS: u32 = 1 << 18;
    let operations = kernels(set).multiply_on_all_threads(1).unwrap_or(0);
    bencher
        .counter(ItemsCount::new(operations / 2 * u64::from(ROUNDS)))
        .bench_local(|| kernels(set).multiply_on_all_threads(black_box(ROUNDS)));
}

macro_rules! products {
    ($($name:ident: $ty:expr),*) => {$(
        mod $name {
            use super::*;

            #[divan::bench(args = sets())]
            fn one_token(bencher: Bencher<'_, '_>, set: &str) {
                super::one_token(bencher, $ty, set);
            }

            #[divan::bench(args = sets(), consts = [8, 128])]
            fn many_tokens<const TOKENS: usize>(bencher: Bencher<'_, '_>, set: &str) {
                super::many_tokens(bencher, $ty, set, TOKENS);
            }
        }
    )*};
}

products!(
    q4_k: GgmlType::Q4K,
    q6_k: GgmlType::Q6K,
    q8_0: GgmlType::Q8_0,
    mxfp4: GgmlType::Mxfp4,
    f16: GgmlType::F16
);

/// A tile of an expert, on one core and out of its own cache, in either order of its bytes.
mod tile {
    use super::*;

    const ROWS: usize = 256;
    const COLS: usize = 1024;

    fn tokens<const TOKENS: usize>(bencher: Bencher<'_, '_>, set: &str, layout: Layout) {
        let mut bytes = weights(GgmlType::Q4K, ROWS, COLS);
        if layout == Layout::Panels {
            let rows = bytes.clone();
            to_panels(&rows, rows.len() / ROWS, &mut bytes);
        }
        let x = activations(GgmlType::Q4K, COLS, TOKENS);
        let xs: Vec<_> = (0..TOKENS).map(|t| x.row(t)).collect();
        let mut out = vec![0.0; ROWS * TOKENS];
        bencher
            .counter(BytesCount::new(bytes.len()))
            .counter(ItemsCount::new(ROWS * COLS * TOKENS))
            .bench_local(|| {
                let w = Matrix::stored(layout, GgmlType::Q4K, ROWS, COLS, &bytes)
                    .unwrap_or_else(|e| panic!("{e}"));
                kernels(set).multiply_rows(&w, 0..ROWS, &xs, Some(&w), black_box(&mut out));
            });
    }

    #[divan::bench(args = sets(), consts = [1, 3, 12, 48])]
    fn plain<const TOKENS: usize>(bencher: Bencher<'_, '_>, set: &str) {
        tokens::<TOKENS>(bencher, set, Layout::Plain);
    }

    #[divan::bench(args = sets(), consts = [1, 3, 12, 48])]
    fn panels<const TOKENS: usize>(bencher: Bencher<'_, '_>, set: &str) {
        tokens::<TOKENS>(bencher, set, Layout::Panels);
    }
}

/// Heads times key rows, and softmax weights times value rows.
mod attention {
    use super::*;

    const DIM: usize = 512;
    const HEADS: usize = 64;
    const ROWS: usize = 32;

    #[divan::bench(args = sets())]
    fn scores(bencher: Bencher<'_, '_>, set: &str) {
        let (queries, rows) = (vec![0.5; HEADS * DIM], vec![0.25; ROWS * DIM]);
        let queries: Vec<&[f32]> = queries.chunks_exact(DIM).collect();
        let rows: Vec<&[f32]> = rows.chunks_exact(DIM).collect();
        let mut out = vec![0.0; HEADS * ROWS];
        bencher
            .counter(ItemsCount::new(HEADS * ROWS * DIM))
            .bench_local(|| kernels(set).dots_grid(&queries, &rows, black_box(&mut out), ROWS));
    }

    #[divan::bench(args = sets())]
    fn values(bencher: Bencher<'_, '_>, set: &str) {
        let (factors, rows) = (vec![0.5; HEADS * ROWS], vec![0.25; ROWS * DIM]);
        let rows: Vec<&[f32]> = rows.chunks_exact(DIM).collect();
        let mut out = vec![0.0; HEADS * DIM];
        bencher
            .counter(ItemsCount::new(HEADS * ROWS * DIM))
            .bench_local(|| {
                let out = black_box(&mut out);
                kernels(set).add_scaled_grid(&factors, ROWS, &rows, out);
            });
    }
}
