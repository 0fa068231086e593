//! What it costs to fork, rewind and keep a sequence of the Flash model, without the model.
//!
//! `cargo bench -p ds4-coordinator --bench sequence`

use std::hint::black_box;
use std::time::Duration;

use divan::{Bencher, Divan};
use ds4_common::model::synthetic::presets;
use ds4_coordinator::engine::{DEFAULT_REWIND, Numerics, Sequence};

/// Tokens of a sequence. The second takes 210 MB.
const TOKENS: [usize; 2] = [2_000, 32_000];

/// Time for one figure, so that all of them are soon done.
const LONGEST: Duration = Duration::from_secs(2);

fn main() {
    Divan::default().max_time(LONGEST).config_with_args().main();
}

fn sequence(tokens: usize) -> Sequence {
    let mut sequence = Sequence::of_shape(&presets::flash(43), Numerics::Full, DEFAULT_REWIND);
    sequence.append_zeros(tokens);
    sequence
}

#[divan::bench(args = TOKENS)]
fn fork(bencher: Bencher<'_, '_>, tokens: usize) {
    let sequence = sequence(tokens);
    bencher.bench_local(|| sequence.fork());
}

#[divan::bench(args = TOKENS)]
fn checkpoint(bencher: Bencher<'_, '_>, tokens: usize) {
    let sequence = sequence(tokens);
    bencher.bench_local(|| sequence.checkpoint());
}

/// The end of a fork that the original still holds.
#[divan::bench(args = TOKENS)]
fn drop_fork(bencher: Bencher<'_, '_>, tokens: usize) {
    let sequence = sequence(tokens);
    let forks = bencher.with_inputs(|| sequence.fork());
    forks.bench_local_values(drop);
}

/// As after a draft of eight tokens of which one is accepted: what was appended is its own.
#[divan::bench(args = TOKENS, sample_size = 1, sample_count = 1000)]
fn rewind_7(bencher: Bencher<'_, '_>, tokens: usize) {
    rewind(bencher, tokens, 8, 7);
}

/// By as much as is always possible.
#[divan::bench(args = TOKENS, sample_size = 1, sample_count = 1000)]
fn rewind_64(bencher: Bencher<'_, '_>, tokens: usize) {
    rewind(bencher, tokens, DEFAULT_REWIND, DEFAULT_REWIND);
}

/// Appends tokens to a sequence that nobody shares, and takes some of them back.
fn rewind(bencher: Bencher<'_, '_>, tokens: usize, appended: usize, back: usize) {
    // Only one sequence is measured, since each needs its own blocks: it is grown again each time.
    let state = std::cell::RefCell::new(sequence(tokens));
    let grown = bencher.with_inputs(|| {
        let mut sequence = state.borrow_mut();
        let missing = tokens + appended - sequence.position();
        sequence.append_zeros(missing);
        sequence.position() - back
    });
    grown.bench_local_values(|position| {
        let mut sequence = state.borrow_mut();
        sequence.rewind(position).expect("the rows are kept");
        black_box(sequence.position())
    });
}

/// Of a fork, which shares every block.
#[divan::bench(args = TOKENS)]
fn rewind_fork_17(bencher: Bencher<'_, '_>, tokens: usize) {
    let sequence = sequence(tokens);
    let forks = bencher.with_inputs(|| sequence.fork());
    forks.bench_local_refs(|fork| fork.rewind(tokens - 17).expect("the rows are kept"));
}

/// One token's rows: what a step adds to a sequence that nobody shares.
#[divan::bench(args = TOKENS, sample_size = 1, sample_count = 5000)]
fn append(bencher: Bencher<'_, '_>, tokens: usize) {
    let mut sequence = sequence(tokens);
    bencher.bench_local(|| sequence.append_zeros(1));
}

/// The same after a fork, which copies the lists of blocks and the open ones.
#[divan::bench(args = TOKENS, sample_size = 1, sample_count = 1000)]
fn append_to_fork(bencher: Bencher<'_, '_>, tokens: usize) {
    let sequence = sequence(tokens);
    let forks = bencher.with_inputs(|| sequence.fork());
    forks.bench_local_refs(|fork| fork.append_zeros(1));
}

/// Sums up what the sequence holds alone.
#[divan::bench(args = TOKENS)]
fn own_bytes(bencher: Bencher<'_, '_>, tokens: usize) {
    let sequence = sequence(tokens);
    bencher.bench_local(|| sequence.own_bytes());
}
