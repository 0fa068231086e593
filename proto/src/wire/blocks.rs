//! Bulk fields: activations, routes and rows as little-endian bytes.

use bytes::{BufMut, Bytes, BytesMut};

use ds4_common::expert::{ExpertInput, Route};
use ds4_common::quant::{ActivationFormat, BlockQ8, BlockQ8K};

use super::FLOAT_BYTES;
use crate::limits::ROUTE_BYTES;

/// Elements and bytes on the wire of one block of `format`.
const fn block(format: ActivationFormat) -> (usize, usize) {
    match format {
        ActivationFormat::F32 => (1, FLOAT_BYTES),
        ActivationFormat::Q8 => (32, FLOAT_BYTES + 32),
        ActivationFormat::Q8K => (256, FLOAT_BYTES + 256),
    }
}

/// Bytes of a row of `hidden` activations; `None` if that is not a whole number of blocks.
pub(super) fn input_bytes(format: ActivationFormat, hidden: usize) -> Option<usize> {
    let (elements, bytes) = block(format);
    if !hidden.is_multiple_of(elements) {
        return None;
    }
    (hidden / elements).checked_mul(bytes)
}

/// The bytes of `rows` (tokens) out of a batch of `tokens`.
pub(super) fn encode_input(
    input: &ExpertInput,
    rows: std::ops::Range<usize>,
    tokens: usize,
) -> Bytes {
    let (elements, bytes) = block(input.format());
    let per_row = input.elements() / elements / tokens.max(1);
    let range = rows.start * per_row..rows.end * per_row;
    let mut out = BytesMut::with_capacity(range.len() * bytes);
    match input {
        ExpertInput::F32(values) => put_floats(&values[range], &mut out),
        ExpertInput::Q8(blocks) => {
            for block in &blocks[range] {
                put_block(block.d, &block.q, &mut out);
            }
        }
        ExpertInput::Q8K(blocks) => {
            for block in &blocks[range] {
                put_block(block.d, &block.q, &mut out);
            }
        }
    }
    out.freeze()
}

fn put_block<const N: usize>(d: f32, q: &[i8; N], out: &mut BytesMut) {
    out.put_f32_le(d);
    out.put_slice(&q.map(|v| v.cast_unsigned()));
}

fn put_floats(values: &[f32], out: &mut BytesMut) {
    for run in values.chunks(64) {
        let mut raw = [0u8; 64 * FLOAT_BYTES];
        for (bytes, value) in raw.chunks_exact_mut(FLOAT_BYTES).zip(run) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        out.put_slice(&raw[..run.len() * FLOAT_BYTES]);
    }
}

/// Activations out of `bytes`, whose length the caller has checked. Trailing bytes that fill no
/// block are left out.
pub(super) fn decode_input(format: ActivationFormat, bytes: &[u8]) -> ExpertInput {
    match format {
        ActivationFormat::F32 => ExpertInput::F32(
            bytes
                .as_chunks::<FLOAT_BYTES>()
                .0
                .iter()
                .map(|raw| f32::from_le_bytes(*raw))
                .collect(),
        ),
        ActivationFormat::Q8 => ExpertInput::Q8(
            bytes
                .as_chunks::<{ FLOAT_BYTES + 32 }>()
                .0
                .iter()
                .map(|raw| {
                    let (d, q) = take_block(raw);
                    BlockQ8 { d, q }
                })
                .collect(),
        ),
        ActivationFormat::Q8K => ExpertInput::Q8K(
            bytes
                .as_chunks::<{ FLOAT_BYTES + 256 }>()
                .0
                .iter()
                .map(|raw| {
                    let (d, q) = take_block(raw);
                    let bsums = sums_of_16(&q);
                    BlockQ8K { d, q, bsums }
                })
                .collect(),
        ),
    }
}

fn take_block<const N: usize>(raw: &[u8]) -> (f32, [i8; N]) {
    let mut d = [0; FLOAT_BYTES];
    d.copy_from_slice(&raw[..FLOAT_BYTES]);
    let mut q = [0; N];
    for (value, byte) in q.iter_mut().zip(&raw[FLOAT_BYTES..]) {
        *value = byte.cast_signed();
    }
    (f32::from_le_bytes(d), q)
}

/// Sums of runs of 16, which fit: 16 x -128 is -2048.
fn sums_of_16(q: &[i8; 256]) -> [i16; 16] {
    let mut sums = [0; 16];
    for (sum, run) in sums.iter_mut().zip(q.chunks_exact(16)) {
        *sum = run.iter().map(|v| i16::from(*v)).sum();
    }
    sums
}

pub(super) fn encode_routes(routes: &[Route]) -> Bytes {
    let mut out = BytesMut::with_capacity(routes.len() * ROUTE_BYTES);
    for route in routes {
        out.put_u32_le(route.expert);
        out.put_f32_le(route.weight);
    }
    out.freeze()
}

/// Routes out of `bytes`, whose length the caller has checked.
pub(super) fn decode_routes(bytes: &[u8]) -> Vec<Route> {
    bytes
        .as_chunks::<ROUTE_BYTES>()
        .0
        .iter()
        .map(|[a, b, c, d, e, f, g, h]| Route {
            expert: u32::from_le_bytes([*a, *b, *c, *d]),
            weight: f32::from_le_bytes([*e, *f, *g, *h]),
        })
        .collect()
}

/// The bytes of rows, in the form that travels.
#[must_use]
pub fn bytes_from_floats(values: &[f32]) -> Bytes {
    let mut out = BytesMut::with_capacity(values.len() * FLOAT_BYTES);
    put_floats(values, &mut out);
    out.freeze()
}

/// Reads the floats of a row into `out`, up to the end of the shorter of both.
pub fn floats_from_bytes(bytes: &[u8], out: &mut [f32]) {
    for (value, raw) in out.iter_mut().zip(bytes.as_chunks::<FLOAT_BYTES>().0) {
        *value = f32::from_le_bytes(*raw);
    }
}
