//! What a sequence remembers: per layer the keys of the last window, the compressed rows of all
//! that came before, the indexer's keys, and the inputs of the compressors' open windows.
//!
//! Each is a stream of rows in blocks that sequences share ([`RowStream`]), described by data
//! ([`CacheLayout`]). So a sequence can be forked and rewound without computing or copying rows.

mod block;
mod layout;
mod row_stream;
mod stream_spec;

use ds4_common::model::HyperParams;

pub(crate) use block::BlockMeter;
pub(crate) use layout::{CacheLayout, Compressed};
pub(crate) use row_stream::RowStream;

use super::numerics::Numerics;
use layout::LayerStreams;

/// One layer's rows of a sequence.
pub(crate) type LayerCache = LayerStreams<RowStream>;

/// A sequence of tokens and what the model remembers of them. A failed or cancelled step leaves it
/// broken, since its layers then stand at different positions; a rewind may mend it.
///
/// Sequences share the blocks of rows that they have in common. A block is freed when the last
/// sequence that holds it is dropped.
#[derive(Debug)]
pub struct Sequence {
    /// Tokens in the caches; the position of the next token. Of a broken sequence, of the first
    /// token of the step that broke it.
    pub(crate) position: usize,
    pub(crate) broken: bool,
    /// One for each layer of the model.
    pub(crate) layers: Vec<LayerCache>,
}

/// Why a sequence cannot be rewound; it has not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewindError {
    /// The position lies behind the end of the sequence.
    #[error(
        "a sequence at position {position} cannot be rewound to position {wanted}, which is later"
    )]
    Later {
        /// Position of the sequence.
        position: usize,
        /// The wanted position.
        wanted: usize,
    },
    /// Rows that the wanted position needs are no longer kept.
    #[error(
        "a sequence at position {position} cannot be rewound to position {wanted}: {earliest} is \
         the earliest position whose rows it still has"
    )]
    TooFar {
        /// Position of the sequence.
        position: usize,
        /// The wanted position.
        wanted: usize,
        /// The earliest position to which the sequence can be rewound.
        earliest: usize,
    },
    /// The step that broke the sequence has dropped rows that every position up to that step needs.
    #[error(
        "a sequence that a step broke at position {position} cannot be rewound to position \
         {wanted}: the step has dropped rows that all earlier positions need"
    )]
    Lost {
        /// Position of the sequence.
        position: usize,
        /// The wanted position.
        wanted: usize,
    },
}

impl Sequence {
    /// An empty sequence of a model. Its blocks are counted by `meter`.
    pub(crate) fn new(layout: &CacheLayout, meter: &BlockMeter) -> Self {
        let layers = layout.layers.iter();
        Sequence {
            position: 0,
            broken: false,
            layers: layers
                .map(|layer| layer.map(|&spec| RowStream::new(spec, meter)))
                .collect(),
        }
    }

    fn streams(&self) -> impl Iterator<Item = &RowStream> {
        self.layers.iter().flat_map(LayerCache::iter)
    }

    fn streams_mut(&mut self) -> impl Iterator<Item = &mut RowStream> {
        self.layers.iter_mut().flat_map(LayerCache::iter_mut)
    }

    /// A sequence with the same past, which goes on by itself. Shares all blocks: time and memory
    /// do not depend on the length. The first tokens that either of the two appends afterwards
    /// copy the last block of each stream, if it is not full.
    #[must_use]
    pub fn fork(&self) -> Self {
        Sequence {
            position: self.position,
            broken: self.broken,
            layers: self.layers.clone(),
        }
    }

    /// A fork to be kept: it lets go of what the sequence holds only in order to be rewound, so
    /// that it can go on from its position but not be rewound before it. It holds the least at
    /// positions at which no compressor has an open window, which are multiples of 128. A fork of a
    /// broken sequence lets go of nothing.
    #[must_use]
    pub fn checkpoint(&self) -> Self {
        let mut fork = self.fork();
        if !fork.broken {
            fork.streams_mut().for_each(RowStream::trim_to_needs);
        }
        fork
    }

    /// Makes the sequence what it was when it had `position` tokens, to the bit. A broken sequence
    /// is whole afterwards.
    ///
    /// It succeeds for the last [`rewind`](super::EngineConfig::rewind) positions, and for
    /// earlier ones whose rows happen to be held still. A checkpoint has fewer until it has grown,
    /// and so has what was rewound. Blocks stay, to be filled again by the tokens that come
    /// instead; [`Self::checkpoint`] lets go of them.
    ///
    /// # Errors
    /// The position is later than the sequence's, or rows that it needs are gone.
    pub fn rewind(&mut self, position: usize) -> Result<(), RewindError> {
        let wanted = position;
        let position = self.position;
        if wanted > position {
            return Err(RewindError::Later { position, wanted });
        }
        match self.oldest_reachable() {
            None => return Err(RewindError::Lost { position, wanted }),
            Some(earliest) if wanted < earliest => {
                return Err(RewindError::TooFar {
                    position,
                    wanted,
                    earliest,
                });
            }
            Some(_) => {}
        }
        self.streams_mut().for_each(|stream| stream.rewind(wanted));
        self.position = wanted;
        self.broken = false;
        Ok(())
    }

    /// The earliest position to which [`Self::rewind`] succeeds; it does for all from there to the
    /// sequence's own. `None` if a step that broke the sequence has dropped rows that were needed:
    /// a chunk of no more tokens than [`rewind`](super::EngineConfig::rewind) never does.
    #[must_use]
    pub fn oldest_reachable(&self) -> Option<usize> {
        let earliest = self.streams().map(RowStream::earliest).max().unwrap_or(0);
        (earliest <= self.position).then_some(earliest)
    }

    /// Bytes of the blocks that the sequence holds, shared ones included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.streams().map(RowStream::bytes).sum()
    }

    /// Bytes of the blocks that no other sequence holds: what dropping this one frees. Time grows
    /// with the number of blocks.
    #[must_use]
    pub fn own_bytes(&self) -> u64 {
        self.streams().map(RowStream::own_bytes).sum()
    }

    /// Tokens in the caches, which is the position of the next token; of a broken sequence, those
    /// before the step that broke it.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether a failed or cancelled step left the sequence unusable, unless it can be rewound.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }
}

/// For benches, which measure sequences without a model.
#[doc(hidden)]
impl Sequence {
    /// An empty sequence of a model of this shape, as an engine makes it.
    #[must_use]
    pub fn of_shape(hp: &HyperParams, numerics: Numerics, rewind: usize) -> Self {
        let layout = CacheLayout::new(hp, numerics, rewind);
        Sequence::new(&layout, &BlockMeter::default())
    }

    /// Appends the rows of `tokens` tokens, all zero.
    pub fn append_zeros(&mut self, tokens: usize) {
        self.position += tokens;
        let position = self.position;
        self.streams_mut().for_each(|stream| stream.grow(position));
    }
}

#[cfg(test)]
mod tests;
