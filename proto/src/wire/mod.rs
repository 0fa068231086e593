//! Conversion between messages and checked types. Everything that a peer sent passes here before it
//! is used: lengths are checked against counts, counts against [`crate::limits`], ids against the
//! model's shape. What comes out cannot lead to an index out of bounds or to an allocation of the
//! peer's choice.
//!
//! Activations are not inspected: the arithmetic is total on NaN and infinity, and no index or size
//! is derived from a float. Rows must be finite: nothing that a model can use comes of others.
//!
//! Every message has a checksum. That of work and of rows is made from the numbers themselves and
//! compared with the numbers that are used, so that it also covers the buffers of both processes.

mod blocks;
mod held;
mod node;
mod probe;
mod rows;
mod seal;
mod slice;
mod tile_set;
mod version;
mod work;

use ds4_common::expert::{BatchError, MoeShape};
use ds4_common::quant::ActivationFormat;
use ds4_common::tiles::{TileError, TileRect};

pub use blocks::{bytes_from_floats, floats_from_bytes};
pub use held::{EncodedHoldings, decode_held, encode_held};
pub use node::{
    InstanceId, Mismatch, NodeInfo, check_hello, decode_node, decode_welcome, hello, welcome,
};
pub use probe::{
    check_measure, check_source, count_probe_bytes, decode_rates, encode_rates, probe_noise,
};
pub use rows::{ReceivedRows, RowsFault, rows_checksum, rows_message};
pub use seal::{Sealed, open_reply, open_request, reply, request, seal, verify};
pub use slice::{SliceMismatch, check_offer_request, decode_hash, decode_offer, offer_request};
pub use tile_set::{decode_tiles, encode_tiles};
pub use version::Versions;
pub use work::{DecodedWork, EncodedBatch, checksum_of_work, decode_work, is_intact};

use crate::limits::{
    FINGERPRINT_BYTES, MAX_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, MAX_TOKENS, RECT_BYTES,
};

/// A model's fingerprint, in the form that travels.
pub type FingerprintBytes = [u8; FINGERPRINT_BYTES];

/// Bytes of a float of a row.
const FLOAT_BYTES: usize = 4;

/// Bytes of the largest request that a model of `shape` gives reason to: the activations of the
/// most tokens in their widest format, their routes, tiles, and the rest.
#[must_use]
pub fn request_bytes(shape: &MoeShape) -> usize {
    // No format takes more than a float for each value.
    let input = MAX_TOKENS.saturating_mul(shape.row_bytes());
    input.min(MAX_PAYLOAD_BYTES) + MAX_MESSAGE_BYTES - MAX_PAYLOAD_BYTES
}

/// Tokens that a call for tiles with `subtrees` maximal subtrees may hold, so that neither its
/// activations nor its rows can exceed the limits; 0 if not even one token fits.
#[must_use]
pub fn tokens_per_call(shape: &MoeShape, subtrees: usize, format: ActivationFormat) -> usize {
    let reply = subtrees.saturating_mul(shape.row_bytes()).max(1);
    let input = blocks::input_bytes(format, shape.hidden).unwrap_or(usize::MAX);
    MAX_TOKENS
        .min(MAX_PAYLOAD_BYTES / reply)
        .min(MAX_PAYLOAD_BYTES / input.max(1))
}

/// A message that contradicts the protocol, its own counts or the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A number is outside of its bounds.
    #[error("{field} is {found}, expected {least} to {most}")]
    Bound {
        /// Field of the message, or what is counted.
        field: &'static str,
        /// The peer's number.
        found: u64,
        /// Smallest number allowed.
        least: u64,
        /// Largest number allowed.
        most: u64,
    },
    /// A field's length contradicts the message's own counts.
    #[error("{field} has {found} bytes, expected {expected} from the message's counts")]
    Length {
        /// Field of the message.
        field: &'static str,
        /// Bytes of the field.
        found: usize,
        /// Bytes that the counts require.
        expected: usize,
    },
    /// The message names another number of chosen experts than the model has.
    #[error("{found} experts per token, where the model's router chooses {expected}")]
    ExpertsUsed {
        /// Experts per token in the message.
        found: usize,
        /// Experts per token of the model.
        expected: usize,
    },
    /// The input format has no meaning in this protocol version.
    #[error("unknown input format {0}")]
    Format(i32),
    /// The model's width cannot be cut into blocks of the input format.
    #[error("rows of {hidden} activations are not a whole number of {format:?} blocks")]
    Blocks {
        /// Format of the input.
        format: ActivationFormat,
        /// Activations of a token.
        hidden: usize,
    },
    /// The reply might not fit into one message.
    #[error("rows of {tokens} tokens for {subtrees} subtrees could exceed {limit} bytes")]
    Reply {
        /// Tokens of the call.
        tokens: usize,
        /// Maximal subtrees of its tiles.
        subtrees: usize,
        /// Bytes of rows that a reply may have.
        limit: usize,
    },
    /// The bytes of tile rectangles do not end with a rectangle.
    #[error("{0} bytes of tile rectangles are not a multiple of {RECT_BYTES}")]
    Rects(usize),
    /// No rectangle of the node holds all of a requested one.
    #[error("tiles {rect} of layer {layer} are not held here in one piece")]
    NotHeld {
        /// The rectangle that was requested.
        rect: TileRect,
        /// Layer of the call.
        layer: u32,
    },
    /// The tiles do not fit the grid.
    #[error(transparent)]
    Tiles(#[from] TileError),
    /// The batch does not fit the model.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A message was changed on its way; holds what it is.
    #[error("{0} does not have its checksum: it was changed on its way")]
    Checksum(&'static str),
    /// A fingerprint of another length; holds that length in bytes.
    #[error("the fingerprint has {0} bytes, expected {FINGERPRINT_BYTES}")]
    Fingerprint(usize),
}

/// Refuses `found` outside of `least..=most`.
fn bound(field: &'static str, found: u64, least: u64, most: u64) -> Result<(), WireError> {
    if found < least || found > most {
        return Err(WireError::Bound {
            field,
            found,
            least,
            most,
        });
    }
    Ok(())
}

/// Refuses a byte length other than `expected`.
fn length(field: &'static str, found: usize, expected: usize) -> Result<(), WireError> {
    if found != expected {
        return Err(WireError::Length {
            field,
            found,
            expected,
        });
    }
    Ok(())
}

/// A peer's text for a terminal or a log: cut to `most` bytes, control characters replaced, so
/// that a message stays one line and cannot drive the terminal.
#[must_use]
pub fn clip(text: &str, most: usize) -> String {
    let mut kept = String::new();
    for c in text.chars() {
        if kept.len() + c.len_utf8() > most {
            break;
        }
        kept.push(if c.is_control() { ' ' } else { c });
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use ds4_common::tiles::Grid;

    #[test]
    fn clip_keeps_whole_characters_and_one_line() {
        assert_eq!(clip("a\nb\u{1b}[1m", 100), "a b [1m");
        assert_eq!(clip("ééé", 5), "éé");
    }

    #[test]
    fn tokens_per_call_follows_the_larger_side() {
        let grid = Grid {
            experts: 256,
            blocks: 8,
        };
        let shape = MoeShape {
            layers: 1,
            hidden: 4096,
            experts_used: 6,
            grid,
        };
        assert_eq!(tokens_per_call(&shape, 1, ActivationFormat::Q8K), 512);
        assert_eq!(tokens_per_call(&shape, 32, ActivationFormat::Q8K), 128);
        assert_eq!(
            tokens_per_call(&shape, usize::MAX, ActivationFormat::Q8K),
            0,
            "never a call that the node would refuse"
        );
        let odd = MoeShape {
            hidden: 100,
            ..shape
        };
        assert_eq!(tokens_per_call(&odd, 1, ActivationFormat::Q8K), 0);
    }
}
