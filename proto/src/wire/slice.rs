//! Offers of slices.

use std::path::Path;

use ds4_common::slice::{Hash, SliceError, SliceHead, file_name};

use super::{WireError, bound};
use crate::limits::{MAX_NAME_BYTES, MAX_SLICE_HEAD_BYTES, PROTOCOL_VERSION};
use crate::pb;

/// An offer that a node cannot use, or a node that a coordinator cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum SliceMismatch {
    #[error("the node speaks protocol version {node}, the coordinator version {coordinator}")]
    Version { node: u32, coordinator: u32 },
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Slice(#[from] SliceError),
    #[error("the slice offered is written by software of another version")]
    Form,
    #[error("the slice offered has hashes already")]
    Hashes,
}

/// What a node asks first.
#[must_use]
pub fn offer_request(node: &str) -> pb::OfferRequest {
    pb::OfferRequest {
        protocol_version: PROTOCOL_VERSION,
        node: node.to_owned(),
        software: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// The coordinator's check of it.
///
/// # Errors
/// A value is outside of its bounds, or the version is another.
pub fn check_offer_request(request: &pb::OfferRequest) -> Result<(), SliceMismatch> {
    if request.protocol_version != PROTOCOL_VERSION {
        return Err(SliceMismatch::Version {
            node: request.protocol_version,
            coordinator: PROTOCOL_VERSION,
        });
    }
    let software = request.software.len() as u64;
    let most = MAX_NAME_BYTES as u64;
    bound("the software name's length", software, 0, most)?;
    file_name(&request.node)?;
    Ok(())
}

/// The node's check of an offer; `from` is what messages name.
///
/// # Errors
/// The head is none of a slice that this software reads and writes, contradicts the file's length,
/// or the coordinator speaks another version.
pub fn decode_offer(reply: &pb::OfferReply, from: &Path) -> Result<SliceHead, SliceMismatch> {
    if reply.protocol_version != PROTOCOL_VERSION {
        return Err(SliceMismatch::Version {
            node: PROTOCOL_VERSION,
            coordinator: reply.protocol_version,
        });
    }
    let most = MAX_SLICE_HEAD_BYTES as u64;
    bound("the head's length", reply.head.len() as u64, 1, most)?;
    let head = SliceHead::parse(from.to_path_buf(), &reply.head, reply.file_bytes)?;
    let end = head.tensors().last().map_or(0, |t| t.offset + t.bytes);
    // More would make the node reserve what nobody sends.
    bound("the file's length", reply.file_bytes, end, end)?;
    if head.encode()? != reply.head {
        return Err(SliceMismatch::Form);
    }
    if head.tensors().iter().any(|t| t.hash.is_some()) {
        return Err(SliceMismatch::Hashes);
    }
    Ok(head)
}

/// Reads a hash.
///
/// # Errors
/// It has another length.
pub fn decode_hash(bytes: &[u8]) -> Result<Hash, WireError> {
    let bytes: [u8; 32] = bytes.try_into().map_err(|_| WireError::Length {
        field: "a hash",
        found: bytes.len(),
        expected: 32,
    })?;
    Ok(Hash::from_bytes(bytes))
}
