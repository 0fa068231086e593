//! Measurements of nodes and links.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use ds4_common::measure::MachineRates;

use super::{WireError, bound, clip, seal, verify};
use crate::limits::{
    MAX_CORES, MAX_NAME_BYTES, MAX_PROBE_BUDGET, MAX_PROBE_BYTES, PROBE_CHUNK_BYTES,
};
use crate::pb;

/// The message with a node's measurement.
#[must_use]
pub fn encode_rates(rates: &MachineRates) -> pb::MeasureReply {
    seal(pb::MeasureReply {
        read_rate: rates.read,
        operation_rate: rates.operations.unwrap_or(0),
        memory: rates.memory.unwrap_or(0),
        cores: rates.cores.min(MAX_CORES),
        kernels: rates.kernels.clone(),
        checksum: 0,
    })
}

/// The coordinator's check of a node's measurement.
///
/// # Errors
/// A value is outside of its bounds.
pub fn decode_rates(reply: &pb::MeasureReply) -> Result<MachineRates, WireError> {
    verify(reply)?;
    bound("the rate of reading", reply.read_rate, 1, u64::MAX)?;
    bound("cores", reply.cores.into(), 1, MAX_CORES.into())?;
    Ok(MachineRates {
        read: reply.read_rate,
        operations: Some(reply.operation_rate).filter(|rate| *rate > 0),
        memory: Some(reply.memory).filter(|bytes| *bytes > 0),
        cores: reply.cores,
        kernels: clip(&reply.kernels, MAX_NAME_BYTES),
    })
}

/// The node's check of a request: how long it may compute.
///
/// # Errors
/// It is 0, or longer than a node computes for a measurement.
pub fn check_measure(request: &pb::MeasureRequest) -> Result<Duration, WireError> {
    let budget = request.budget_ms.into();
    bound("budget_ms", budget, 1, MAX_PROBE_BUDGET.as_millis() as u64)?;
    Ok(Duration::from_millis(budget))
}

/// The node's check of a request: how much it is to send.
///
/// # Errors
/// It is 0, or more than a call may carry.
pub fn check_source(request: &pb::SourceRequest) -> Result<u64, WireError> {
    bound("bytes", request.bytes, 1, MAX_PROBE_BYTES)?;
    Ok(request.bytes)
}

/// Adds a message to the bytes of a call so far.
///
/// # Errors
/// The message, or the call with it, carries more than it may.
pub fn count_probe_bytes(so_far: u64, data: &pb::ProbeData) -> Result<u64, WireError> {
    let bytes = data.data.len() as u64;
    bound("a message's length", bytes, 0, PROBE_CHUNK_BYTES as u64)?;
    let all = so_far.saturating_add(bytes);
    bound("a call's length", all, 0, MAX_PROBE_BYTES)?;
    Ok(all)
}

/// A message's worth of bytes without repetition, since some links compress.
#[must_use]
pub fn probe_noise() -> Bytes {
    static NOISE: LazyLock<Bytes> = LazyLock::new(|| {
        let mut state = 1u64;
        let next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        std::iter::repeat_with(next)
            .take(PROBE_CHUNK_BYTES)
            .collect()
    });
    NOISE.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_survive_the_wire_and_nonsense_does_not() {
        let rates = MachineRates {
            read: 40_000_000_000,
            operations: None,
            memory: Some(64 << 30),
            cores: 16,
            kernels: "avx2".to_owned(),
        };
        assert_eq!(decode_rates(&encode_rates(&rates)), Ok(rates.clone()));
        let mut reply = encode_rates(&rates);
        reply.read_rate = 0;
        assert!(decode_rates(&reply).is_err(), "another checksum");
        assert!(decode_rates(&seal(reply)).is_err());
        let mut reply = encode_rates(&rates);
        reply.cores = MAX_CORES + 1;
        assert!(decode_rates(&seal(reply)).is_err());
        let mut reply = encode_rates(&rates);
        reply.kernels = "\u{1b}[2J".repeat(MAX_NAME_BYTES);
        let found = decode_rates(&seal(reply)).expect("rates").kernels;
        assert!(found.len() <= MAX_NAME_BYTES + 3 && !found.contains('\u{1b}'));
    }

    #[test]
    fn requests_are_bounded() {
        let measure = |budget_ms| check_measure(&pb::MeasureRequest { budget_ms });
        assert_eq!(measure(500), Ok(MAX_PROBE_BUDGET));
        assert!(measure(0).is_err() && measure(501).is_err() && measure(u32::MAX).is_err());
        let source = |bytes| check_source(&pb::SourceRequest { bytes });
        assert_eq!(source(MAX_PROBE_BYTES), Ok(MAX_PROBE_BYTES));
        assert!(source(0).is_err() && source(u64::MAX).is_err());
        let data = |bytes| pb::ProbeData {
            data: vec![0; bytes].into(),
        };
        assert_eq!(count_probe_bytes(5, &data(7)), Ok(12));
        assert!(count_probe_bytes(0, &data(PROBE_CHUNK_BYTES + 1)).is_err());
        assert!(count_probe_bytes(MAX_PROBE_BYTES, &data(1)).is_err());
        assert!(count_probe_bytes(u64::MAX, &data(1)).is_err());
    }
}
