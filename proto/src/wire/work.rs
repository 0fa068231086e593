//! One call: encoded once for all nodes, checked by each before it is computed.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use ds4_common::checksum::Checksum;
use ds4_common::expert::{BatchFields, ExpertBatch, MoeShape};
use ds4_common::quant::ActivationFormat;
use ds4_common::tiles::{Holdings, TileSet};

use super::blocks::{decode_input, decode_routes, encode_input, encode_routes, input_bytes};
use super::{WireError, bound, decode_tiles, encode_tiles, length, tokens_per_call};
use crate::limits::{MAX_DEADLINE, MAX_PAYLOAD_BYTES, MAX_TOKENS, ROUTE_BYTES};
use crate::pb;

/// The part of a call that is the same for every node. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct EncodedBatch {
    layer: u32,
    tokens: u32,
    experts_used: u32,
    round: bool,
    format: pb::InputFormat,
    routes: Bytes,
    input: Bytes,
    /// Of the numbers that were encoded, see [`ExpertBatch::checksum`].
    checksum: u64,
}

impl EncodedBatch {
    /// Encodes the tokens of `range`.
    #[must_use]
    pub fn new(batch: &ExpertBatch, range: Range<usize>) -> Self {
        EncodedBatch {
            layer: batch.layer as u32,
            tokens: range.len() as u32,
            experts_used: batch.shape().experts_used as u32,
            round: batch.round,
            format: match batch.input.format() {
                ActivationFormat::F32 => pb::InputFormat::F32,
                ActivationFormat::Q8 => pb::InputFormat::Q8,
                ActivationFormat::Q8K => pb::InputFormat::Q8k,
            },
            routes: encode_routes(batch.routes_of_all(range.clone())),
            input: encode_input(&batch.input, range.clone(), batch.tokens),
            checksum: batch.checksum(range),
        }
    }

    /// The message for one node.
    #[must_use]
    pub fn work(&self, id: u64, rects: &TileSet, deadline: Duration) -> pb::Work {
        let rects = encode_tiles(rects);
        let deadline_ms = deadline.min(MAX_DEADLINE).as_millis().max(1) as u32;
        pb::Work {
            id,
            checksum: work_checksum(self.checksum, id, deadline_ms, &rects),
            layer: self.layer,
            tokens: self.tokens,
            used: self.experts_used,
            routes: self.routes.clone(),
            format: self.format.into(),
            round: self.round,
            rects,
            deadline_ms,
            input: self.input.clone(),
        }
    }
}

/// Checked work, ready to be computed by a node.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodedWork {
    /// The coordinator's number of the call, unique among the unanswered ones of a stream.
    pub id: u64,
    /// Routes and activations of one layer.
    pub batch: ExpertBatch,
    /// Tiles to compute, in the order of the reply.
    pub rects: TileSet,
    /// Time from receipt after which the answer is useless.
    pub deadline: Duration,
    /// What the coordinator computed over all of this.
    pub checksum: u64,
}

impl DecodedWork {
    /// Whether this is still what the coordinator sent, bit for bit.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.checksum == self.own_checksum() && self.batch.sums_agree()
    }

    /// This work with the checksum of what it is, as a coordinator would have sent it.
    #[must_use]
    pub fn sealed(self) -> Self {
        DecodedWork {
            checksum: self.own_checksum(),
            ..self
        }
    }

    fn own_checksum(&self) -> u64 {
        let batch = self.batch.checksum(0..self.batch.tokens);
        let deadline_ms = self.deadline.as_millis() as u32;
        work_checksum(batch, self.id, deadline_ms, &encode_tiles(&self.rects))
    }
}

/// Whether a message with work, which may contradict the model, is what the coordinator sent.
#[must_use]
pub fn is_intact(work: &pb::Work) -> bool {
    work.checksum == checksum_of_work(work)
}

/// The checksum that a message with work should have.
#[must_use]
pub fn checksum_of_work(work: &pb::Work) -> u64 {
    let mut sum = Checksum::new(0);
    for number in [
        u64::from(work.layer),
        u64::from(work.tokens),
        u64::from(work.used),
        u64::from(work.round),
        i64::from(work.format).cast_unsigned(),
    ] {
        sum.number(number);
    }
    sum.bytes(&work.routes);
    sum.bytes(&work.input);
    work_checksum(sum.finish(), work.id, work.deadline_ms, &work.rects)
}

/// The checksum of a call, from that of its batch.
fn work_checksum(batch: u64, id: u64, deadline_ms: u32, rects: &[u8]) -> u64 {
    let mut sum = Checksum::new(batch);
    sum.number(id);
    sum.number(deadline_ms.into());
    sum.bytes(rects);
    sum.finish()
}

/// Checks one work item against the model and the tiles held.
///
/// # Errors
/// Names the first field that is out of bounds or contradicts another one.
pub fn decode_work(
    work: &pb::Work,
    shape: &MoeShape,
    held: &Holdings,
) -> Result<DecodedWork, WireError> {
    bound("tokens", work.tokens.into(), 1, MAX_TOKENS as u64)?;
    let most_ms = MAX_DEADLINE.as_millis() as u64;
    bound("deadline_ms", work.deadline_ms.into(), 1, most_ms)?;
    let (tokens, experts_used) = (work.tokens as usize, work.used as usize);
    if experts_used != shape.experts_used {
        let expected = shape.experts_used;
        return Err(WireError::ExpertsUsed {
            found: experts_used,
            expected,
        });
    }
    length(
        "routes",
        work.routes.len(),
        tokens * experts_used * ROUTE_BYTES,
    )?;
    let format = decode_format(work.format)?;
    check_input(work, tokens, format, shape)?;

    let rects = decode_tiles(shape.grid, &work.rects)?;
    let here = held.layer(work.layer as usize);
    let around = |rect| here.and_then(|tiles| tiles.rect_around(rect));
    if let Some(rect) = rects.rects().iter().find(|rect| around(**rect).is_none()) {
        return Err(WireError::NotHeld {
            rect: *rect,
            layer: work.layer,
        });
    }
    let subtrees = rects.subtrees(shape.grid);
    if tokens_per_call(shape, subtrees, format) < tokens {
        return Err(WireError::Reply {
            tokens,
            subtrees,
            limit: MAX_PAYLOAD_BYTES,
        });
    }

    let fields = BatchFields {
        layer: work.layer as usize,
        tokens,
        routes: decode_routes(&work.routes),
        input: decode_input(format, &work.input),
        round: work.round,
    };
    Ok(DecodedWork {
        id: work.id,
        batch: ExpertBatch::new(*shape, fields)?,
        rects,
        deadline: Duration::from_millis(work.deadline_ms.into()),
        checksum: work.checksum,
    })
}

fn decode_format(format: i32) -> Result<ActivationFormat, WireError> {
    match pb::InputFormat::try_from(format) {
        Ok(pb::InputFormat::F32) => Ok(ActivationFormat::F32),
        Ok(pb::InputFormat::Q8) => Ok(ActivationFormat::Q8),
        Ok(pb::InputFormat::Q8k) => Ok(ActivationFormat::Q8K),
        Ok(pb::InputFormat::Unspecified) | Err(_) => Err(WireError::Format(format)),
    }
}

fn check_input(
    work: &pb::Work,
    tokens: usize,
    format: ActivationFormat,
    shape: &MoeShape,
) -> Result<(), WireError> {
    let hidden = shape.hidden;
    let row = input_bytes(format, hidden).ok_or(WireError::Blocks { format, hidden })?;
    let expected = row.saturating_mul(tokens);
    bound("input bytes", expected as u64, 1, MAX_PAYLOAD_BYTES as u64)?;
    length("input", work.input.len(), expected)
}
