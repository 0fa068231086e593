//! What a sequence remembers: per layer the last window of key/value rows, the compressed rows of
//! all that came before, the indexer's keys, and the unfinished window of each compressor.

mod compressor_state;
mod rows;

use ds4_common::model::HyperParams;

pub(crate) use compressor_state::CompressorState;
pub(crate) use rows::Rows;

use super::Numerics;

/// One timeline of tokens. A failed or cancelled step leaves it broken, since its layers then
/// stand at different positions.
#[derive(Debug)]
pub struct Sequence {
    pub(crate) position: usize,
    pub(crate) broken: bool,
    pub(crate) layers: Vec<LayerCache>,
}

/// One layer's memory of a sequence.
#[derive(Debug)]
pub(crate) struct LayerCache {
    /// Key/value rows of positions `window_start..`, at least the last `window - 1`.
    pub(crate) window: Rows,
    pub(crate) window_start: usize,
    /// Present on compressing layers.
    pub(crate) compressed: Option<Compressed>,
    /// Present where an indexer selects among compressed rows.
    pub(crate) index: Option<Compressed>,
}

/// Rows that stand for `ratio` tokens each, and the state of the window not yet closed.
#[derive(Debug)]
pub(crate) struct Compressed {
    pub(crate) rows: Rows,
    pub(crate) state: CompressorState,
}

impl Sequence {
    pub(crate) fn new(hp: &HyperParams, numerics: Numerics) -> Self {
        let rows = |width| Rows::new(width, numerics.rounds_cache());
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

    /// Bytes of a sequence of `tokens` tokens at its largest, which is inside of a step, if no step
    /// adds more than `chunk` of them. Of rows that are held, not of what their lists reserve and
    /// have not touched.
    pub(crate) fn most_bytes(
        hp: &HyperParams,
        numerics: Numerics,
        tokens: usize,
        chunk: usize,
    ) -> u64 {
        let half = numerics.rounds_cache();
        let rows = |count: usize, width| (count as u64) * Rows::row_bytes(width, half) as u64;
        let compressed = |width, ratio| {
            rows(tokens / ratio, width) + CompressorState::bytes(width, ratio) as u64
        };
        // What trimming leaves, and the rows of the next chunk.
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

    /// Bytes of everything that is held now.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let compressed = |c: &Option<Compressed>| c.as_ref().map_or(0, Compressed::bytes);
        let layer = |layer: &LayerCache| {
            layer.window.bytes() + compressed(&layer.compressed) + compressed(&layer.index)
        };
        self.layers.iter().map(|l| layer(l) as u64).sum()
    }

    /// Tokens taken in so far.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether an earlier step left the sequence unfinished.
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
    /// Forgets window rows that no later token can see. Moves memory once a window at most.
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
