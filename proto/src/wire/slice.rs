//! Offers of slices.

use std::path::Path;

use ds4_common::slice::{Hash, SliceError, SliceHead, file_name};

use super::{Versions, WireError, bound, seal, verify};
use crate::limits::{MAX_NAME_BYTES, MAX_SLICE_HEAD_BYTES};
use crate::pb;

/// An offer that a node cannot use, or a node that a coordinator cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum SliceMismatch {
    /// There is no protocol version that both speak.
    #[error("the node speaks protocol version {node}, the coordinator version {coordinator}")]
    Version {
        /// The node's versions.
        node: Versions,
        /// The coordinator's versions.
        coordinator: Versions,
    },
    /// A value is out of bounds.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The head is not that of a valid slice, or the node's name is not valid.
    #[error(transparent)]
    Slice(#[from] SliceError),
    /// The head would be written differently by this software.
    #[error("the offered slice was written by another version of the software")]
    Form,
    /// The head of an offer states hashes, which only a finished slice has.
    #[error("the offered slice already has hashes")]
    Hashes,
}

/// A node's first request.
#[must_use]
pub fn offer_request(node: &str) -> pb::OfferRequest {
    seal(pb::OfferRequest {
        protocol_version: Versions::OURS.newest,
        oldest_version: Versions::OURS.oldest,
        node: node.to_owned(),
        software: env!("CARGO_PKG_VERSION").to_owned(),
        checksum: 0,
    })
}

/// The coordinator's check of a node's first request.
///
/// # Errors
/// A value is outside of its bounds, or there is no version that both speak.
pub fn check_offer_request(request: &pb::OfferRequest) -> Result<(), SliceMismatch> {
    let node = Versions::of(request.oldest_version, request.protocol_version);
    if Versions::OURS.common(node).is_none() {
        return Err(SliceMismatch::Version {
            node,
            coordinator: Versions::OURS,
        });
    }
    verify(request)?;
    let software = request.software.len() as u64;
    let most = MAX_NAME_BYTES as u64;
    bound("the software name's length", software, 0, most)?;
    file_name(&request.node)?;
    Ok(())
}

/// The node's check of an offer; `from` is what messages name.
///
/// # Errors
/// The head is not that of a slice that this software reads and writes, contradicts the file's
/// length, or there is no version that both speak.
pub fn decode_offer(reply: &pb::OfferReply, from: &Path) -> Result<SliceHead, SliceMismatch> {
    let coordinator = Versions::of(reply.oldest_version, reply.protocol_version);
    if Versions::OURS.common(coordinator).is_none() {
        return Err(SliceMismatch::Version {
            node: Versions::OURS,
            coordinator,
        });
    }
    verify(reply)?;
    let most = MAX_SLICE_HEAD_BYTES as u64;
    bound("the head's length", reply.head.len() as u64, 1, most)?;
    let head = SliceHead::parse(from.to_path_buf(), &reply.head, reply.file_bytes)?;
    let end = head.tensors().last().map_or(0, |t| t.offset + t.bytes);
    // More would make the node reserve space that is never filled.
    bound("the file's length", reply.file_bytes, end, end)?;
    if head.encode()? != reply.head {
        return Err(SliceMismatch::Form);
    }
    if head.tensors().iter().any(|t| t.hash.is_some()) {
        return Err(SliceMismatch::Hashes);
    }
    Ok(head)
}

/// Reads a hash of 32 bytes.
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
