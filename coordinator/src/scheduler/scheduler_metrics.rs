//! The scheduler's metrics: their names, units and meanings in one place.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

const RUNNING: &str = "ds4_requests_running";
const WAITING: &str = "ds4_requests_waiting";
const KV_BUDGET: &str = "ds4_kv_memory_budget_bytes";
const KV_RESERVED: &str = "ds4_kv_memory_reserved_bytes";
const PROMPT_TOKENS: &str = "ds4_prompt_tokens_total";
const GENERATED_TOKENS: &str = "ds4_generated_tokens_total";
const FIRST_TOKEN: &str = "ds4_time_to_first_token_seconds";
const NEXT_TOKEN: &str = "ds4_inter_token_latency_seconds";
const QUEUE_TIME: &str = "ds4_request_queue_time_seconds";
const STEP_TIME: &str = "ds4_step_duration_seconds";
const STEP_ROWS: &str = "ds4_step_tokens";
const STEP_FAILURES: &str = "ds4_step_failures_total";

/// Registers the descriptions, and the counters at zero so that they are exported from the start.
pub fn describe() {
    describe_gauge!(RUNNING, "Requests that the engine is computing.");
    describe_gauge!(WAITING, "Requests waiting in the queue.");
    describe_gauge!(
        KV_BUDGET,
        Unit::Bytes,
        "Bytes that the KV caches of all running requests may occupy together."
    );
    describe_gauge!(
        KV_RESERVED,
        Unit::Bytes,
        "Bytes reserved for the KV caches of the running requests at their longest."
    );
    describe_counter!(PROMPT_TOKENS, "Prompt tokens computed.");
    describe_counter!(GENERATED_TOKENS, "Tokens generated.");
    describe_histogram!(
        FIRST_TOKEN,
        Unit::Seconds,
        "Time from a request's arrival to its first token."
    );
    describe_histogram!(
        NEXT_TOKEN,
        Unit::Seconds,
        "Time between two consecutive tokens of one answer."
    );
    describe_histogram!(
        QUEUE_TIME,
        Unit::Seconds,
        "Time from a request's arrival to the start of its computation."
    );
    describe_histogram!(
        STEP_TIME,
        Unit::Seconds,
        "Duration of a forward pass over all chunks of a step."
    );
    describe_histogram!(STEP_ROWS, "Tokens per forward pass.");
    describe_counter!(STEP_FAILURES, "Forward passes that failed.");
    load(0, 0, 0);
    counter!(PROMPT_TOKENS).absolute(0);
    counter!(GENERATED_TOKENS).absolute(0);
    counter!(STEP_FAILURES).absolute(0);
}

/// The histogram of the tokens of a step, and its bucket bounds in tokens.
pub const TOKENS: (&str, &[f64]) = (
    STEP_ROWS,
    &[
        1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0,
    ],
);

/// Bucket bounds for durations, in seconds: a token may take a millisecond and a long prompt an
/// hour.
pub const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
];

pub(super) fn kv_budget(bytes: u64) {
    gauge!(KV_BUDGET).set(bytes as f64);
}

pub(super) fn load(waiting: usize, running: usize, kv_reserved: u64) {
    gauge!(KV_RESERVED).set(kv_reserved as f64);
    gauge!(WAITING).set(waiting as f64);
    gauge!(RUNNING).set(running as f64);
}

pub(super) fn queued(wait: Duration) {
    histogram!(QUEUE_TIME).record(wait);
}

pub(super) fn step(took: Duration, rows: usize, prefill: usize) {
    histogram!(STEP_TIME).record(took);
    histogram!(STEP_ROWS).record(rows as f64);
    counter!(PROMPT_TOKENS).increment(prefill as u64);
}

pub(super) fn failed_step() {
    counter!(STEP_FAILURES).increment(1);
}

pub(super) fn first_token(wait: Duration) {
    counter!(GENERATED_TOKENS).increment(1);
    histogram!(FIRST_TOKEN).record(wait);
}

pub(super) fn next_token(wait: Duration) {
    counter!(GENERATED_TOKENS).increment(1);
    histogram!(NEXT_TOKEN).record(wait);
}
