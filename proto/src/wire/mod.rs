//! Between messages and checked types. Everything that a peer sent passes here before it is used:
//! lengths against counts, counts against [`crate::limits`], ids against the model's shape. What
//! comes out cannot lead to an index out of bounds or an allocation of the peer's choice.
//!
//! Floats are not inspected: the arithmetic is total on NaN and infinity, no index or size is
//! derived from a float, and an in-process computation would not refuse them either, so both ways
//! give the same bits.

mod blocks;
mod held;
mod node;
mod probe;
mod slice;
mod tile_set;
mod version;
mod work;

use ds4_common::expert::BatchError;
use ds4_common::quant::ActivationFormat;
use ds4_common::tiles::{Grid, TileError, TileRect};

pub use blocks::{bytes_from_floats, floats_from_bytes};
pub use held::{EncodedHoldings, decode_held, encode_held};
pub use node::{Mismatch, NodeInfo, check_hello, decode_node, decode_welcome, hello, welcome};
pub use probe::{MachineRates, check_measure, check_source, count_probe_bytes};
pub use slice::{SliceMismatch, check_offer_request, decode_hash, decode_offer, offer_request};
pub use tile_set::{decode_tiles, encode_tiles};
pub use version::Versions;
pub use work::{Call, EncodedBatch, decode_work};

use crate::limits::{MAX_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, MAX_TOKENS, RECT_BYTES};

/// A model's fingerprint as it travels.
pub type FingerprintBytes = [u8; crate::limits::FINGERPRINT_BYTES];

/// Bytes of a float of a row.
const FLOAT_BYTES: usize = 4;

/// The sizes of a model that bound what may travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub layers: usize,
    /// Width of a layer's input and of a row of a reply.
    pub hidden: usize,
    /// Experts that the router chooses for a token.
    pub experts_used: usize,
    pub grid: Grid,
}

impl Shape {
    /// Bytes of one row of a reply.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.hidden * FLOAT_BYTES
    }

    /// Bytes of the largest request that this model gives reason to: the activations of the most
    /// tokens in their widest format, their routes, tiles, and the rest.
    #[must_use]
    pub fn request_bytes(&self) -> usize {
        // No format takes more than a float for each value.
        let input = MAX_TOKENS.saturating_mul(self.row_bytes());
        input.min(MAX_PAYLOAD_BYTES) + MAX_MESSAGE_BYTES - MAX_PAYLOAD_BYTES
    }

    /// Tokens that a call for tiles with `subtrees` maximal subtrees may hold, so that neither
    /// its activations nor its rows can exceed the limits; 0 if not even one token fits.
    #[must_use]
    pub fn tokens_per_call(&self, subtrees: usize, format: ActivationFormat) -> usize {
        let reply = subtrees.saturating_mul(self.row_bytes()).max(1);
        let input = blocks::input_bytes(format, self.hidden).unwrap_or(usize::MAX);
        MAX_TOKENS
            .min(MAX_PAYLOAD_BYTES / reply)
            .min(MAX_PAYLOAD_BYTES / input.max(1))
    }
}

/// A message that contradicts the protocol, its own counts or the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("{field} is {found}, allowed are {least} to {most}")]
    Bound {
        field: &'static str,
        found: u64,
        least: u64,
        most: u64,
    },
    #[error("{field} has {found} bytes where its counts ask for {expected}")]
    Length {
        field: &'static str,
        found: usize,
        expected: usize,
    },
    #[error("input format {0} is unknown")]
    Format(i32),
    #[error("rows of {hidden} activations are no whole number of {format:?} blocks")]
    Blocks {
        format: ActivationFormat,
        hidden: usize,
    },
    #[error("rows of {tokens} tokens for {subtrees} subtrees could exceed {limit} bytes")]
    Reply {
        tokens: usize,
        subtrees: usize,
        limit: usize,
    },
    #[error("tile rectangles of {0} bytes, where one has {RECT_BYTES}")]
    Rects(usize),
    #[error("tiles {rect} of layer {layer} are not held here in one piece")]
    NotHeld { rect: TileRect, layer: u32 },
    #[error(transparent)]
    Tiles(#[from] TileError),
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error("the fingerprint has {0} bytes")]
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
        let shape = Shape {
            layers: 1,
            hidden: 4096,
            experts_used: 6,
            grid,
        };
        assert_eq!(shape.tokens_per_call(1, ActivationFormat::Q8K), 512);
        assert_eq!(shape.tokens_per_call(32, ActivationFormat::Q8K), 128);
        assert_eq!(
            shape.tokens_per_call(usize::MAX, ActivationFormat::Q8K),
            0,
            "never a call that the node would refuse"
        );
        let odd = Shape {
            hidden: 100,
            ..shape
        };
        assert_eq!(odd.tokens_per_call(1, ActivationFormat::Q8K), 0);
    }
}
