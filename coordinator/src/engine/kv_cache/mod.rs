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
