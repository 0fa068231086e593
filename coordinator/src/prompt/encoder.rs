//! Encoding within limits: how many tokens are kept and counted, and whether anybody waits for them.

use std::fmt;

use thiserror::Error;

use super::bpe::{Merger, Merges};
use super::pretokenize::pieces;

/// How long encoding may become.
#[derive(Clone, Copy)]
pub struct EncodeLimits<'a> {
    /// Most tokens that are kept: a text with more is refused.
    pub keep: usize,
    /// Tokens after which a text that is refused anyway is not counted to its end.
    pub count: usize,
    /// Asked now and then: whether the tokens are still wanted.
    pub wanted: &'a dyn Fn() -> bool,
}

impl Default for EncodeLimits<'_> {
    fn default() -> Self {
        EncodeLimits {
            keep: usize::MAX,
            count: usize::MAX,
            wanted: &|| true,
        }
    }
}

impl fmt::Debug for EncodeLimits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncodeLimits")
            .field("keep", &self.keep)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

/// Why a text was not encoded.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum EncodeError {
    /// It has more tokens than are kept.
    #[error("the text has {} {tokens} tokens", if *.exact { "" } else { "at least" })]
    TooLong {
        /// The tokens counted.
        tokens: usize,
        /// Whether the text ends there; otherwise it has more.
        exact: bool,
    },
    /// Nobody wants its tokens.
    #[error("the tokens are no longer wanted")]
    Unwanted,
}

/// A text that is being encoded.
pub(super) struct Encoder<'a> {
    merges: &'a Merges,
    byte_tokens: &'a [u32; 256],
    limits: EncodeLimits<'a>,
    merger: Merger,
    /// As many tokens as are kept.
    tokens: Vec<u32>,
    /// Tokens so far, kept or not.
    count: usize,
}

/// Tokens between two questions whether they are wanted.
const ASK_EVERY: usize = 4096;

impl<'a> Encoder<'a> {
    pub(super) fn new(
        merges: &'a Merges,
        byte_tokens: &'a [u32; 256],
        limits: EncodeLimits<'a>,
    ) -> Self {
        Encoder {
            merges,
            byte_tokens,
            limits,
            merger: Merger::default(),
            tokens: Vec::new(),
            count: 0,
        }
    }

    /// Takes tokens that stand for themselves.
    pub(super) fn take(&mut self, mut tokens: &mut dyn Iterator<Item = u32>) {
        let room = self.limits.keep.saturating_sub(self.tokens.len());
        let before = self.tokens.len();
        self.tokens.extend(Iterator::take(&mut tokens, room));
        self.count += self.tokens.len() - before + Iterator::count(tokens);
    }

    /// Encodes text without special tokens.
    pub(super) fn merge_pieces(&mut self, text: &str) -> Result<(), EncodeError> {
        // Lent to the calls below, which also fill `self`.
        let mut merger = std::mem::take(&mut self.merger);
        let (merges, byte_tokens, limits) = (self.merges, self.byte_tokens, self.limits);
        let mut asked_at = self.count;
        let mut wanted = true;
        for piece in pieces(text) {
            let mut out = |tokens: &mut dyn Iterator<Item = u32>| {
                self.take(tokens);
                if self.count >= asked_at + ASK_EVERY {
                    asked_at = self.count;
                    wanted = (limits.wanted)();
                }
                wanted && self.count <= limits.count
            };
            merger.merge(merges, piece.as_bytes(), byte_tokens, &mut out);
            if !wanted {
                return Err(EncodeError::Unwanted);
            }
            if self.count > limits.count {
                return Err(EncodeError::TooLong {
                    tokens: self.count,
                    exact: false,
                });
            }
        }
        self.merger = merger;
        Ok(())
    }

    /// The tokens, unless there are more than are kept.
    pub(super) fn finish(self) -> Result<Vec<u32>, EncodeError> {
        if self.count > self.limits.keep {
            return Err(EncodeError::TooLong {
                tokens: self.count,
                exact: true,
            });
        }
        Ok(self.tokens)
    }
}
