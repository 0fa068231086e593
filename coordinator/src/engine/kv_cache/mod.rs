//! The cache of a sequence: per layer the last window of key/value rows, the compressed rows of all
//! that came before, the indexer's keys, and the open window of each compressor.

mod cache_rows;
mod compressor_state;

use ds4_common::model::HyperParams;

pub(crate) use cache_rows::CacheRows;
pub(crate) use compressor_state::CompressorState;

use super::numerics::Numerics;

/// A sequence of tokens and its caches. A failed or cancelled step leaves it broken, since its
/// layers then stand at different positions.
#[derive(Debug)]
pub struct Sequence {
    /// Tokens in the caches; the position of the next token.
    pub(crate) position: usize,
    pub(crate) broken: bool,
    /// One for each layer of the model.
    pub(crate) layers: Vec<LayerCache>,
}

/// One layer's cache of a sequence.
#[derive(Debug)]
pub(crate) struct LayerCache {
    /// Key/value rows `(tokens x head_dim)` of positions `window_start..`, at least the last
    /// `window - 1`.
    pub(crate) window: CacheRows,
    /// Position of the first row of `window`.
    pub(crate) window_start: usize,
    /// Present on compressing layers.
    pub(crate) compressed: Option<Compressed>,
    /// Present where an indexer selects among compressed rows.
    pub(crate) index: Option<Compressed>,
}

/// Rows that each pool `ratio` tokens, and the state of the open window.
#[derive(Debug)]
pub(crate) struct Compressed {
    /// `(tokens/ratio x head_dim)`, or `index_dim` wide for the indexer.
    pub(crate) rows: CacheRows,
    pub(crate) state: CompressorState,
}

impl Sequence {
    pub(crate) fn new(hp: &HyperParams, numerics: Numerics) -> Self {
        let rows = |width| CacheRows::new(width, numerics.rounds_cache());
        let layers = hp
            .compress_ratios
            .iter()
            .map(|&ratio| LayerCache {
                window: rows(hp.head_dim),
                window_start: 0,
                compressed: (ratio != 0).then(|| Compressed {
                    rows: rows(hp.head_dim),
                    state: CompressorState::new(hp.head_dim, ratio),
                }),
                index: (ratio == 4).then(|| Compressed {
                    rows: rows(hp.index_dim),
                    state: CompressorState::new(hp.index_dim, ratio),
                }),
            })
            .collect();
        Sequence {
            position: 0,
            broken: false,
            layers,
        }
    }

    /// The most bytes that a sequence of `tokens` tokens holds, which is during a step, if no step
    /// appends more than `chunk` of them. Counts the rows, not the capacity that their lists
    /// reserve without touching it.
    pub(crate) fn most_bytes(
        hp: &HyperParams,
        numerics: Numerics,
        tokens: usize,
        chunk: usize,
    ) -> u64 {
        let half = numerics.rounds_cache();
        let rows = |count: usize, width| (count as u64) * CacheRows::row_bytes(width, half) as u64;
        let compressed = |width, ratio| {
            rows(tokens / ratio, width) + CompressorState::bytes(width, ratio) as u64
        };
        // The rows that trimming leaves and those of the next chunk.
        let window = tokens.min((2 * hp.window).saturating_sub(1).saturating_add(chunk));
        let layers = hp.compress_ratios.iter().map(|&ratio| {
            let keys = if ratio == 0 {
                0
            } else {
                compressed(hp.head_dim, ratio)
            };
            let index = if ratio == 4 {
                compressed(hp.index_dim, ratio)
            } else {
                0
            };
            rows(window, hp.head_dim) + keys + index
        });
        layers.fold(0, u64::saturating_add)
    }

    /// Bytes that the caches hold.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let compressed = |c: &Option<Compressed>| c.as_ref().map_or(0, Compressed::bytes);
        let layer = |layer: &LayerCache| {
            layer.window.bytes() + compressed(&layer.compressed) + compressed(&layer.index)
        };
        self.layers.iter().map(|l| layer(l) as u64).sum()
    }

    /// Tokens in the caches, which is the position of the next token.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether a failed or cancelled step left the sequence unusable.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }
}

impl Compressed {
    fn bytes(&self) -> usize {
        self.rows.bytes() + self.state.held_bytes()
    }
}

impl LayerCache {
    /// Drops window rows that no later token can see. Moves memory at most once per window.
    pub(crate) fn trim_window(&mut self, window: usize) {
        let held = self.window.len();
        if held >= 2 * window {
            let drop = held - (window - 1);
            self.window.drop_front(drop);
            self.window_start += drop;
            self.window.shrink_to(4 * window);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ds4_common::model::synthetic::presets;

    /// The figures that operators plan with.
    #[test]
    fn a_full_context_of_flash_takes_about_seven_gigabytes() {
        let hp = presets::flash(43);
        let bytes = |tokens| Sequence::most_bytes(&hp, Numerics::Full, tokens, 512);
        // 21 layers of ratio 4 and 20 of ratio 128, half floats.
        let of_tokens = 21 * (512 + 128) * 2 / 4 + 20 * 512 * 2 / 128;
        assert_eq!((bytes(1 << 20) - bytes(1 << 19)) >> 19, of_tokens);
        assert!((7_200_000_000..7_300_000_000).contains(&bytes(1 << 20)));
        assert_eq!(bytes(0), Sequence::new(&hp, Numerics::Full).bytes());
    }
}
