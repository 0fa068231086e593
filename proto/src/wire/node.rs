//! The handshake and a node's description of itself.

use std::fmt::Write;

use ds4_common::expert::MoeShape;
use ds4_common::tiles::{Grid, Holdings};

use super::held::{EncodedHoldings, decode_held, encode_held};
use super::{FingerprintBytes, Versions, WireError, bound, clip, verify};
use crate::limits::{
    INSTANCE_ID_BYTES, MAX_AXIS, MAX_EXPERTS_USED, MAX_HIDDEN, MAX_IN_FLIGHT, MAX_LAYERS,
    MAX_NAME_BYTES, MAX_TEXT_BYTES,
};
use crate::pb;

/// Why two peers cannot work together. Each variant names both sides' values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// There is no protocol version that both speak.
    #[error("the node speaks protocol version {node}, the coordinator version {coordinator}")]
    Version {
        /// The node's versions.
        node: Versions,
        /// The coordinator's versions.
        coordinator: Versions,
    },
    /// The node serves another model.
    #[error(
        "the node serves the model with fingerprint {}, the coordinator the one with {}",
        hex(node),
        hex(coordinator)
    )]
    Fingerprint {
        /// Fingerprint of the node's model.
        node: FingerprintBytes,
        /// Fingerprint of the coordinator's model.
        coordinator: FingerprintBytes,
    },
    /// The routers choose different numbers of experts.
    #[error(
        "the node computes {node} experts per token, the coordinator's router chooses {coordinator}"
    )]
    ExpertsUsed {
        /// Experts per token at the node.
        node: u64,
        /// Experts per token at the coordinator.
        coordinator: u64,
    },
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What the coordinator of a model says first to a node that speaks up to `version`.
#[must_use]
pub fn hello(fingerprint: &FingerprintBytes, shape: &MoeShape, version: u32) -> pb::Hello {
    let ours = Versions::OURS;
    pb::Hello {
        protocol_version: ours.newest.min(version).max(ours.oldest),
        oldest_version: ours.oldest,
        fingerprint: fingerprint.to_vec().into(),
        software: env!("CARGO_PKG_VERSION").to_owned(),
        used: shape.experts_used as u32,
    }
}

/// The node's check of `first`, a stream's first message, which holds `hello`: the version that the
/// stream speaks.
///
/// # Errors
/// The outer error is a malformed or damaged message, the inner one a peer that does not fit.
pub fn check_hello(
    first: &pb::ComputeRequest,
    hello: &pb::Hello,
    ours: &FingerprintBytes,
    shape: &MoeShape,
) -> Result<Result<u32, Mismatch>, WireError> {
    let theirs = Versions::of(hello.oldest_version, hello.protocol_version);
    let Some(version) = Versions::OURS.common(theirs) else {
        return Ok(Err(Mismatch::Version {
            node: Versions::OURS,
            coordinator: theirs,
        }));
    };
    // A message that was damaged on its way would be called another model.
    verify(first)?;
    bound(
        "the software name's length",
        hello.software.len() as u64,
        0,
        MAX_NAME_BYTES as u64,
    )?;
    let theirs = fingerprint(&hello.fingerprint)?;
    if theirs != *ours {
        return Ok(Err(Mismatch::Fingerprint {
            node: *ours,
            coordinator: theirs,
        }));
    }
    if hello.used as usize != shape.experts_used {
        return Ok(Err(Mismatch::ExpertsUsed {
            node: shape.experts_used as u64,
            coordinator: hello.used.into(),
        }));
    }
    Ok(Ok(version))
}

/// The node's answer to a hello.
#[must_use]
pub fn welcome(max_in_flight: u32, held: &Holdings) -> pb::Welcome {
    let EncodedHoldings { held, held_layers } = encode_held(held);
    pb::Welcome {
        max_in_flight,
        held,
        held_layers,
    }
}

/// The coordinator's check of a node's welcome: the window and the tiles held.
///
/// # Errors
/// A value is outside of its bounds.
pub fn decode_welcome(
    welcome: &pb::Welcome,
    shape: &MoeShape,
) -> Result<(usize, Holdings), WireError> {
    bound(
        "max_in_flight",
        welcome.max_in_flight.into(),
        1,
        MAX_IN_FLIGHT.into(),
    )?;
    let held = decode_held(
        shape.grid,
        shape.layers,
        &welcome.held,
        &welcome.held_layers,
    )?;
    Ok((welcome.max_in_flight as usize, held))
}

/// A node's description of itself, checked.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// Version of the node's software, cut to [`MAX_NAME_BYTES`].
    pub software: String,
    /// Name of the model, cut to [`MAX_NAME_BYTES`]; may be empty.
    pub model: String,
    /// Fingerprint of the model.
    pub fingerprint: FingerprintBytes,
    /// Sizes of the model's routed experts.
    pub shape: MoeShape,
    /// Tiles that the node holds, layer by layer.
    pub held: Holdings,
    /// Protocol versions that the node speaks.
    pub versions: Versions,
    /// Instruction set of the node's kernels.
    pub kernels: String,
    /// Compute threads of the node.
    pub threads: u32,
    /// Bytes of the weights of the tiles held.
    pub weight_bytes: u64,
    /// Whether the node finishes accepted work and takes no new work.
    pub draining: bool,
    /// Why the node computes nothing until its weights are right again, cut to
    /// [`MAX_TEXT_BYTES`]; empty if they are.
    pub out_of_service: String,
    /// Work since the node started.
    pub counters: pb::Counters,
    /// Tells the running process from all others; older software has none.
    pub instance: Option<InstanceId>,
}

/// A random number that a node's process draws at its start.
pub type InstanceId = [u8; INSTANCE_ID_BYTES];

/// Checks a description. The version is checked first, since it gives the other fields their
/// meaning.
///
/// # Errors
/// The outer error is a malformed message, the inner one another protocol version.
pub fn decode_node(reply: &pb::DescribeReply) -> Result<Result<NodeInfo, Mismatch>, WireError> {
    let versions = Versions::of(reply.oldest_version, reply.protocol_version);
    if Versions::OURS.common(versions).is_none() {
        return Ok(Err(Mismatch::Version {
            node: versions,
            coordinator: Versions::OURS,
        }));
    }
    verify(reply)?;
    bound("layers", reply.layers.into(), 1, MAX_LAYERS.into())?;
    bound("hidden", reply.hidden.into(), 1, MAX_HIDDEN.into())?;
    bound("used", reply.used.into(), 1, MAX_EXPERTS_USED as u64)?;
    bound("experts", reply.grid_experts.into(), 1, MAX_AXIS.into())?;
    bound("blocks", reply.grid_blocks.into(), 1, MAX_AXIS.into())?;
    let grid = Grid {
        experts: reply.grid_experts,
        blocks: reply.grid_blocks,
    };
    Ok(Ok(NodeInfo {
        software: clip(&reply.software, MAX_NAME_BYTES),
        model: clip(&reply.model, MAX_NAME_BYTES),
        fingerprint: fingerprint(&reply.fingerprint)?,
        shape: MoeShape {
            layers: reply.layers as usize,
            hidden: reply.hidden as usize,
            experts_used: reply.used as usize,
            grid,
        },
        held: decode_held(grid, reply.layers as usize, &reply.held, &reply.held_layers)?,
        versions,
        kernels: clip(&reply.kernels, MAX_NAME_BYTES),
        threads: reply.threads,
        weight_bytes: reply.weight_bytes,
        draining: reply.draining,
        out_of_service: clip(&reply.out_of_service, MAX_TEXT_BYTES),
        counters: reply.counters.unwrap_or_default(),
        instance: instance(&reply.instance_id)?,
    }))
}

fn instance(bytes: &[u8]) -> Result<Option<InstanceId>, WireError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let exact = INSTANCE_ID_BYTES as u64;
    bound("the instance id's length", bytes.len() as u64, exact, exact)?;
    Ok(bytes.try_into().ok())
}

fn fingerprint(bytes: &[u8]) -> Result<FingerprintBytes, WireError> {
    bytes
        .try_into()
        .map_err(|_| WireError::Fingerprint(bytes.len()))
}
