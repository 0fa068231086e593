//! Why there is no cluster.

use ds4_common::expert::MoeShape;
use ds4_common::tiles::{TileError, TileRect};
use ds4_proto::channel::AddressError;
use ds4_proto::security::{DialError, PlainText};
use ds4_proto::wire::{Mismatch, WireError};

use crate::cluster::assignment::list;

/// Why there is no cluster.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("no expert nodes were named")]
    NoNodes,
    #[error("expert node {0} is named twice")]
    Duplicate(String),
    #[error("'{address}' is no node address: {reason}")]
    Address {
        address: String,
        reason: AddressError,
    },
    #[error(transparent)]
    PlainText(#[from] PlainText),
    #[error("expert node {node} was not reached within {seconds} s: {reason}")]
    Unreachable {
        node: String,
        seconds: u64,
        reason: String,
    },
    #[error("expert node {node} does not fit: {mismatch}")]
    Mismatch { node: String, mismatch: Mismatch },
    #[error("expert node {node} does not fit: it has {found}, the coordinator {expected}")]
    Shape {
        node: String,
        found: MoeShape,
        expected: MoeShape,
    },
    #[error("expert node {node} describes itself wrongly: {problem}")]
    Malformed { node: String, problem: WireError },
    #[error("layer {layer}: no expert node holds {}", list(tiles))]
    Uncovered { layer: usize, tiles: Vec<TileRect> },
    #[error(transparent)]
    Grid(#[from] TileError),
}

impl From<DialError> for ClusterError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Address { address, reason } => ClusterError::Address { address, reason },
            DialError::PlainText(error) => ClusterError::PlainText(error),
        }
    }
}
