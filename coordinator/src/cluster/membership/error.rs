//! Why a coordinator cannot use a cluster of nodes.

use ds4_common::expert::MoeShape;
use ds4_common::tiles::{TileError, TileRect};
use ds4_proto::channel::AddressError;
use ds4_proto::security::{DialError, PlainText};
use ds4_proto::wire::{Mismatch, WireError};

use crate::cluster::tile_assignment::list;

/// Why a coordinator cannot use a cluster of nodes.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClusterError {
    /// The list of nodes is empty.
    #[error("no expert nodes are named")]
    NoNodes,
    /// The list names a node twice.
    #[error("expert node {0} is named twice")]
    Duplicate(String),
    /// A name is not an address.
    #[error("invalid node address '{address}': {reason}")]
    Address {
        /// The name.
        address: String,
        /// What is wrong with it.
        reason: AddressError,
    },
    /// A node would be reached over plain text from another machine.
    #[error(transparent)]
    PlainText(#[from] PlainText),
    /// A node whose tiles are needed cannot be connected.
    #[error("expert node {node} was not reached within {seconds} s: {reason}")]
    Unreachable {
        /// Its address.
        node: String,
        /// The start-up timeout.
        seconds: u64,
        /// Why the last attempt failed.
        reason: String,
    },
    /// A node serves another model or speaks another protocol version.
    #[error("expert node {node} does not fit this cluster: {mismatch}")]
    Mismatch {
        /// Its address.
        node: String,
        /// The difference.
        mismatch: Mismatch,
    },
    /// A node's model has another shape.
    #[error(
        "expert node {node} does not fit this cluster: it has {found}, the coordinator has \
         {expected}"
    )]
    Shape {
        /// Its address.
        node: String,
        /// The node's shape.
        found: MoeShape,
        /// The coordinator's shape.
        expected: MoeShape,
    },
    /// A node's description cannot be decoded.
    #[error("expert node {node} sent a malformed description: {problem}")]
    Malformed {
        /// Its address.
        node: String,
        /// What is wrong with it.
        problem: WireError,
    },
    /// A node's numbers are not those of this model.
    #[error(
        "expert node {node} computes wrong numbers: {tile} of layer {layer} gave {found:016x} \
         instead of {expected}; check its slice with `ds4-expert verify`"
    )]
    WrongNumbers {
        /// Its address.
        node: String,
        /// The layer of the known call.
        layer: usize,
        /// The tile that it computed.
        tile: TileRect,
        /// Checksum of its rows.
        found: u64,
        /// What it should have been, and who computed that.
        expected: String,
    },
    /// Some tiles have no replica, and no node that could bring them is awaited.
    #[error("layer {layer}: no expert node holds {}", list(tiles))]
    Uncovered {
        /// The first such layer.
        layer: usize,
        /// The tiles, as merged rectangles.
        tiles: Vec<TileRect>,
    },
    /// The tile grid cannot be cut as prescribed.
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
