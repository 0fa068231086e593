//! Which streams the sequences of a model have, and how many bytes they take at most.

use ds4_common::model::HyperParams;

use super::block::RowStorage;
use super::stream_spec::{Keep, StreamSpec};
use crate::engine::numerics::Numerics;

/// Most rows of a block. What a short sequence leaves unused, and what the first append after a
/// fork copies, is at most one block of each stream.
const BLOCK_ROWS: usize = 64;

/// The streams of a layer by what they serve: their descriptions, or the rows of a sequence.
#[derive(Clone, Debug)]
pub(crate) struct LayerStreams<S> {
    /// Keys, which are values too, of the last tokens: one a token, `head_dim` wide.
    pub(crate) window: S,
    /// Present on compressing layers; rows are `head_dim` wide.
    pub(crate) compressed: Option<Compressed<S>>,
    /// Present where an indexer selects among compressed rows; rows are `index_dim` wide.
    pub(crate) index: Option<Compressed<S>>,
}

/// The streams of a compressor.
#[derive(Clone, Debug)]
pub(crate) struct Compressed<S> {
    /// What it made: one row for every window of tokens.
    pub(crate) rows: S,
    /// What it pools, one row for each token: its values, then its scores.
    pub(crate) inputs: S,
}

impl<S> LayerStreams<S> {
    pub(super) fn iter(&self) -> impl Iterator<Item = &S> {
        let compressors = self.compressed.iter().chain(&self.index);
        let of_compressors = compressors.flat_map(|c| [&c.rows, &c.inputs]);
        std::iter::once(&self.window).chain(of_compressors)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut S> {
        let compressors = self.compressed.iter_mut().chain(&mut self.index);
        let of_compressors = compressors.flat_map(|c| [&mut c.rows, &mut c.inputs]);
        std::iter::once(&mut self.window).chain(of_compressors)
    }

    pub(super) fn map<T>(&self, of: impl Fn(&S) -> T) -> LayerStreams<T> {
        let both = |c: &Compressed<S>| Compressed {
            rows: of(&c.rows),
            inputs: of(&c.inputs),
        };
        LayerStreams {
            window: of(&self.window),
            compressed: self.compressed.as_ref().map(both),
            index: self.index.as_ref().map(both),
        }
    }
}

/// What the sequences of a model remember.
#[derive(Clone, Debug)]
pub(crate) struct CacheLayout {
    /// One for each layer of the model.
    pub(super) layers: Vec<LayerStreams<StreamSpec>>,
}

impl CacheLayout {
    /// The streams of a model whose sequences can be rewound by `rewind` tokens.
    pub(crate) fn new(hp: &HyperParams, numerics: Numerics, rewind: usize) -> Self {
        Self::in_blocks(hp, numerics, rewind, BLOCK_ROWS)
    }

    /// The same in blocks of at most `block_rows` rows.
    pub(crate) fn in_blocks(
        hp: &HyperParams,
        numerics: Numerics,
        rewind: usize,
        block_rows: usize,
    ) -> Self {
        let storage = if numerics.rounds_cache() {
            RowStorage::F16
        } else {
            RowStorage::F32
        };
        let stream = |width, storage, ratio, keep| {
            StreamSpec::new(width, storage, ratio, keep, block_rows).rewindable(rewind)
        };
        let compressed = |width: usize, ratio: usize| {
            let overlap = HyperParams::compressor_overlap(ratio);
            let window = Keep::Windows {
                tokens: ratio,
                closed: overlap - 1,
            };
            Compressed {
                rows: stream(width, storage, ratio, Keep::All),
                // Not rounded, and values and scores are wider where windows overlap.
                inputs: stream(2 * overlap * width, RowStorage::F32, 1, window),
            }
        };
        let layers = hp.compress_ratios.iter().map(|&ratio| LayerStreams {
            window: stream(
                hp.head_dim,
                storage,
                1,
                Keep::Last(hp.window.saturating_sub(1)),
            ),
            compressed: (ratio != 0).then(|| compressed(hp.head_dim, ratio)),
            index: (ratio == 4).then(|| compressed(hp.index_dim, ratio)),
        });
        CacheLayout {
            layers: layers.collect(),
        }
    }

    /// The most bytes that a sequence of up to `tokens` tokens holds, which is during a step, if no
    /// step appends more than `chunk` of them.
    pub(crate) fn most_bytes(&self, tokens: usize, chunk: usize) -> u64 {
        let layer = |layer: &LayerStreams<StreamSpec>, chunk| {
            let streams = layer.iter().map(|spec| {
                // The inputs of compressors are dropped as windows close.
                let at_once = match spec.keep {
                    Keep::Last(_) => chunk,
                    Keep::All | Keep::Windows { .. } => 0,
                };
                spec.most_bytes(tokens, at_once)
            });
            streams.fold(0, u64::saturating_add)
        };
        let settled = self.layers.iter().map(|l| layer(l, 0));
        // Layers take a step one after the other, and each drops rows when it is done.
        let growths = self.layers.iter().map(|l| layer(l, chunk) - layer(l, 0));
        settled.fold(growths.max().unwrap_or(0), u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ds4_common::model::synthetic::presets;

    fn flash(rewind: usize) -> CacheLayout {
        CacheLayout::new(&presets::flash(43), Numerics::Full, rewind)
    }

    /// The figures that operators plan with.
    #[test]
    fn a_full_context_of_flash_takes_about_seven_gigabytes() {
        let layout = flash(0);
        let bytes = |tokens| layout.most_bytes(tokens, 512);
        // 21 layers of ratio 4 and 20 of ratio 128, half floats.
        let of_tokens = 21 * (512 + 128) * 2 / 4 + 20 * 512 * 2 / 128;
        assert_eq!((bytes(1 << 20) - bytes(1 << 19)) >> 19, of_tokens);
        assert!((7_200_000_000..7_300_000_000).contains(&bytes(1 << 20)));
        assert_eq!(bytes(0), 0);
    }

    /// Windows of 128 rows and chunks of 512, compressors with as many inputs as a window has.
    #[test]
    fn what_does_not_grow_with_the_sequence_stays_small() {
        let of_tokens = (1 << 20) * (21 * (512 + 128) * 2 / 4 + 20 * 512 * 2 / 128);
        let fixed = |rewind| flash(rewind).most_bytes(1 << 20, 512) - of_tokens;
        // In half floats 43 windows of 127 rows in at most 3 blocks of 64, one of 639 rows in 11;
        // in floats the inputs of 20 and of 21 compressors, and of 21 indexers' compressors.
        let windows = (42 * 3 + 11) * 64 * 512 * 2;
        let inputs = 20 * 128 * 2 * 512 * 4 + 21 * 8 * 2 * 2 * (512 + 128) * 4;
        assert_eq!(fixed(0), windows + inputs);
        assert!(fixed(64) < 2 * fixed(0) + (1 << 20), "{}", fixed(64));
    }

    #[test]
    fn every_token_of_a_short_sequence_is_covered() {
        let layout = flash(64);
        let mut before = 0;
        for tokens in 0..600 {
            let bytes = layout.most_bytes(tokens, 8);
            assert!(bytes >= before, "{tokens}");
            before = bytes;
        }
    }
}
