//! Measurements of nodes and links.

use std::time::Duration;

use super::{WireError, bound, clip};
use crate::limits::{
    MAX_CORES, MAX_NAME_BYTES, MAX_PROBE_BUDGET, MAX_PROBE_BYTES, PROBE_CHUNK_BYTES,
};
use crate::pb;

/// What a machine can do, as measured on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineRates {
    /// Bytes per second that all threads together read from memory.
    pub read: u64,
    /// 8-bit operations per second of all threads, two for a product. `None` where the kernels have
    /// no instructions for them.
    pub operations: Option<u64>,
    /// Bytes of memory that the process may use, if the operating system tells.
    pub memory: Option<u64>,
    /// Cores that the process may use.
    pub cores: u32,
    /// Instruction set of the kernels.
    pub kernels: String,
}

impl MachineRates {
    /// The message of a node.
    #[must_use]
    pub fn encode(&self) -> pb::MeasureReply {
        pb::MeasureReply {
            read_rate: self.read,
            operation_rate: self.operations.unwrap_or(0),
            memory: self.memory.unwrap_or(0),
            cores: self.cores,
            kernels: self.kernels.clone(),
        }
    }

    /// The coordinator's check of that message.
    ///
    /// # Errors
    /// A value is outside of its bounds.
    pub fn decode(reply: &pb::MeasureReply) -> Result<Self, WireError> {
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
        assert_eq!(MachineRates::decode(&rates.encode()), Ok(rates.clone()));
        let mut reply = rates.encode();
        reply.read_rate = 0;
        assert!(MachineRates::decode(&reply).is_err());
        let mut reply = rates.encode();
        reply.cores = MAX_CORES + 1;
        assert!(MachineRates::decode(&reply).is_err());
        let mut reply = rates.encode();
        reply.kernels = "\u{1b}[2J".repeat(MAX_NAME_BYTES);
        let found = MachineRates::decode(&reply).expect("rates").kernels;
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
