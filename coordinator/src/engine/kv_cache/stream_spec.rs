//! What is remembered, as data: how wide a stream's rows are, how often one comes, how long it is
//! kept, and how many share a block.

use super::block::RowStorage;

/// Bytes of a block: few, since a fork copies the open one, and since a short sequence fills only
/// part of it.
const BLOCK_BYTES: usize = 64 << 10;

/// Which rows a sequence still needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// All of them.
    All,
    /// Those of the last so many tokens.
    Last(usize),
    /// Those of the window of `tokens` tokens that is open, and of `closed` windows before it.
    /// Windows start at multiples of `tokens`.
    Windows {
        /// Tokens of a window.
        tokens: usize,
        /// Closed windows that are still needed.
        closed: usize,
    },
}

impl Keep {
    /// The first token whose row the token at `position`, or a later one, needs.
    pub(crate) fn first_needed(self, position: usize) -> usize {
        match self {
            Keep::All => 0,
            Keep::Last(tokens) => position.saturating_sub(tokens),
            Keep::Windows { tokens, closed } => (position / tokens).saturating_sub(closed) * tokens,
        }
    }

    /// The earliest position that needs no token before `start`.
    fn earliest(self, start: usize) -> usize {
        match self {
            _ if start == 0 => 0,
            Keep::All => usize::MAX,
            Keep::Last(tokens) => start + tokens,
            Keep::Windows { tokens, closed } => {
                (start.div_ceil(tokens) + closed).saturating_mul(tokens)
            }
        }
    }

    /// The most tokens whose rows are needed at once.
    fn most(self) -> usize {
        match self {
            Keep::All => usize::MAX,
            Keep::Last(tokens) => tokens,
            Keep::Windows { tokens, closed } => tokens * (closed + 1),
        }
    }
}

/// A stream of rows of one sequence. Small vectors that a sequence carries along are narrow rows
/// of its last tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamSpec {
    /// Values of a row.
    pub(super) width: usize,
    pub(super) storage: RowStorage,
    /// Tokens per row.
    pub(super) ratio: usize,
    pub(super) keep: Keep,
    /// Tokens by which the sequence can be rewound: rows are kept for as many tokens longer than
    /// they are needed.
    pub(super) rewind: usize,
    /// Binary logarithm of the rows of a block.
    pub(super) block_shift: u32,
}

impl StreamSpec {
    /// The stream of these rows, in blocks of at most `most_rows`.
    pub(super) fn new(
        width: usize,
        storage: RowStorage,
        ratio: usize,
        keep: Keep,
        most_rows: usize,
    ) -> Self {
        let fitting = BLOCK_BYTES / storage.row_bytes(width).max(1);
        let window = match keep {
            // Blocks that divide a window are freed when it is no longer needed.
            Keep::Windows { tokens, .. } => tokens,
            Keep::All | Keep::Last(_) => usize::MAX,
        };
        let rows = fitting.min(most_rows).min(window).max(1);
        StreamSpec {
            width,
            storage,
            ratio,
            keep,
            rewind: 0,
            block_shift: rows.ilog2(),
        }
    }

    /// The same stream, kept so that a sequence can be rewound by `tokens` tokens.
    pub(super) fn rewindable(self, tokens: usize) -> Self {
        StreamSpec {
            rewind: tokens,
            ..self
        }
    }

    /// Rows of a block, a power of two.
    pub(super) fn block_rows(&self) -> usize {
        1 << self.block_shift
    }

    /// Values of a block.
    pub(super) fn block_elements(&self) -> usize {
        self.block_rows() * self.width
    }

    /// Bytes of a block.
    pub(super) fn block_bytes(&self) -> u64 {
        self.storage.row_bytes(self.block_elements()) as u64
    }

    /// Rows of a sequence of `tokens` tokens, those included that are no longer kept.
    pub(super) fn rows_of(&self, tokens: usize) -> usize {
        tokens / self.ratio
    }

    /// The earliest position from which a sequence can go on if its rows before `row` are gone.
    pub(super) fn earliest(&self, row: usize) -> usize {
        self.keep.earliest(row.saturating_mul(self.ratio))
    }

    /// The most bytes that a sequence of up to `tokens` tokens holds while it appends up to
    /// `chunk` of them at once before rows are dropped.
    pub(super) fn most_bytes(&self, tokens: usize, chunk: usize) -> u64 {
        let all = self.rows_of(tokens).div_ceil(self.block_rows());
        let kept = self.keep.most().saturating_add(self.rewind);
        let rows = kept.saturating_add(chunk).div_ceil(self.ratio);
        let block = self.block_rows();
        let aligned = matches!(self.keep, Keep::Windows { tokens, .. } if tokens % block == 0);
        let blocks = if aligned {
            rows.div_ceil(block)
        } else {
            // The first and the last block may hold one row each.
            rows.saturating_add(2 * block - 2) / block
        };
        (all.min(blocks) as u64).saturating_mul(self.block_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEPS: [Keep; 7] = [
        Keep::All,
        Keep::Last(0),
        Keep::Last(1),
        Keep::Last(7),
        Keep::Windows {
            tokens: 4,
            closed: 1,
        },
        Keep::Windows {
            tokens: 4,
            closed: 0,
        },
        Keep::Windows {
            tokens: 6,
            closed: 2,
        },
    ];

    #[test]
    fn the_earliest_position_is_the_first_that_needs_nothing_older() {
        for keep in KEEPS {
            for start in 0..40 {
                let earliest = keep.earliest(start);
                let fits = |&position: &usize| keep.first_needed(position) >= start;
                let first =
                    (0..100).find(|position| fits(position) && (start..).contains(position));
                // Everything is needed for ever.
                assert_eq!(
                    first.unwrap_or(usize::MAX),
                    earliest,
                    "{keep:?} from {start}"
                );
            }
        }
    }

    #[test]
    fn no_position_needs_more_than_the_most() {
        for keep in KEEPS {
            for position in 0..100 {
                let needed = position - keep.first_needed(position);
                assert!(needed <= keep.most(), "{keep:?} at {position}");
            }
        }
    }

    #[test]
    fn a_block_holds_a_power_of_two_of_rows_in_64_kib() {
        let rows =
            |width, keep, most| StreamSpec::new(width, RowStorage::F32, 1, keep, most).block_rows();
        assert_eq!(rows(512, Keep::All, 64), 32);
        assert_eq!(rows(700, Keep::All, 64), 16);
        assert_eq!(rows(1, Keep::All, 64), 64);
        assert_eq!(rows(1 << 20, Keep::All, 64), 1);
        let window = |tokens| Keep::Windows { tokens, closed: 0 };
        assert_eq!(rows(512, window(4), 64), 4);
        assert_eq!(rows(512, window(128), 64), 32);
    }
}
