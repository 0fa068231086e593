//! Byte pair encoding of one piece of text.
//!
//! Source: R. Sennrich, B. Haddow, A. Birch, "Neural machine translation of rare words with subword
//! units", ACL 2016, on bytes instead of characters.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// A merge rule: the result of joining two tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merge {
    /// Lower ranks are joined first.
    pub(super) rank: u32,
    /// The joined token.
    pub(super) token: u32,
}

/// All merges of a vocabulary, by the pair that they join.
#[derive(Debug, Default)]
pub(super) struct Merges(HashMap<(u32, u32), Merge>);

impl Merges {
    /// Adds a merge. Returns `false` if the pair has one already.
    pub(super) fn insert(&mut self, left: u32, right: u32, merge: Merge) -> bool {
        self.0.insert((left, right), merge).is_none()
    }

    fn get(&self, left: u32, right: u32) -> Option<Merge> {
        self.0.get(&(left, right)).copied()
    }
}

/// A token of the word, with the indices of its neighbours.
#[derive(Clone, Copy, Debug)]
struct LinkedToken {
    token: u32,
    previous: usize,
    next: usize,
}

/// The index of a neighbour that does not exist.
const NONE: usize = usize::MAX;

/// A pair that may be joined, ordered by rank, then by place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    at: usize,
    /// The two tokens when the candidate was queued. It is stale once one of them has changed.
    pair: (u32, u32),
}

/// Merges words; keeps its buffers from one word to the next.
#[derive(Debug, Default)]
pub(super) struct Merger {
    tokens: Vec<LinkedToken>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

impl Merger {
    /// Joins the neighbours of lowest rank, the leftmost first, until no pair can be joined, and
    /// appends the tokens that remain of `word` to `out`.
    ///
    /// O(n log n): each join leaves one token less and adds at most two candidates.
    pub(super) fn merge(
        &mut self,
        merges: &Merges,
        word: impl ExactSizeIterator<Item = u32>,
        out: &mut Vec<u32>,
    ) {
        let length = word.len();
        self.tokens.clear();
        self.tokens
            .extend(word.enumerate().map(|(i, token)| LinkedToken {
                token,
                previous: i.wrapping_sub(1),
                next: if i + 1 < length { i + 1 } else { NONE },
            }));
        self.queue.clear();
        for at in 0..length {
            self.consider(merges, at);
        }
        while let Some(Reverse(candidate)) = self.queue.pop() {
            self.join(merges, candidate);
        }
        out.extend(
            self.tokens
                .iter()
                .filter(|linked| linked.token != JOINED)
                .map(|linked| linked.token),
        );
    }

    /// Queues the pair that starts at `at`, if it can be joined.
    fn consider(&mut self, merges: &Merges, at: usize) {
        let LinkedToken { token, next, .. } = self.tokens[at];
        if next == NONE {
            return;
        }
        let pair = (token, self.tokens[next].token);
        if let Some(merge) = merges.get(pair.0, pair.1) {
            self.queue.push(Reverse(Candidate {
                rank: merge.rank,
                at,
                pair,
            }));
        }
    }

    fn join(&mut self, merges: &Merges, Candidate { at, pair, .. }: Candidate) {
        let LinkedToken {
            token,
            previous,
            next,
        } = self.tokens[at];
        if token != pair.0 || next == NONE || self.tokens[next].token != pair.1 {
            return;
        }
        let Some(merge) = merges.get(pair.0, pair.1) else {
            return;
        };
        let after = self.tokens[next].next;
        self.tokens[at] = LinkedToken {
            token: merge.token,
            previous,
            next: after,
        };
        self.tokens[next].token = JOINED;
        if after != NONE {
            self.tokens[after].previous = at;
        }
        self.consider(merges, at);
        if previous != NONE {
            self.consider(merges, previous);
        }
    }
}

/// Marks a token that was joined into the one before it. No vocabulary is long enough to contain
/// this id.
const JOINED: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::{Merge, Merger, Merges};

    fn merges(list: &[(u32, u32, u32)]) -> Merges {
        let mut merges = Merges::default();
        for (rank, &(left, right, token)) in list.iter().enumerate() {
            assert!(merges.insert(
                left,
                right,
                Merge {
                    rank: rank as u32,
                    token
                }
            ));
        }
        merges
    }

    /// The definition, one join at a time.
    fn merge_slowly(merges: &Merges, word: &[u32]) -> Vec<u32> {
        let mut word = word.to_vec();
        loop {
            let best = word
                .windows(2)
                .enumerate()
                .filter_map(|(i, pair)| Some((merges.get(pair[0], pair[1])?, i)))
                .min_by_key(|(merge, i)| (merge.rank, *i));
            let Some((merge, at)) = best else { return word };
            word.splice(at..at + 2, [merge.token]);
        }
    }

    fn merged(merges: &Merges, word: &[u32]) -> Vec<u32> {
        let mut out = Vec::new();
        Merger::default().merge(merges, word.iter().copied(), &mut out);
        out
    }

    #[test]
    fn equal_ranks_are_joined_from_the_left() {
        let merges = merges(&[(0, 0, 1)]);
        assert_eq!(merged(&merges, &[0, 0, 0]), [1, 0]);
    }

    #[test]
    fn a_long_word_takes_linear_time() {
        let merges = merges(&[(0, 0, 1), (1, 1, 2), (2, 2, 3)]);
        let start = Instant::now();
        let out = merged(&merges, &vec![0; 1_000_000]);
        assert_eq!(out, vec![3; 125_000]);
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "took {:?}",
            start.elapsed()
        );
    }

    proptest! {
        #[test]
        fn equals_the_definition(
            list in prop::collection::vec((0u32..6, 0u32..6), 0..12),
            word in prop::collection::vec(0u32..4, 0..30),
        ) {
            let mut merges = Merges::default();
            for (rank, (left, right)) in list.into_iter().enumerate() {
                // Tokens 4 and 5 only come from merges; results may themselves be merged again.
                let token = 4 + (rank as u32 % 2);
                merges.insert(left, right, Merge { rank: rank as u32, token });
            }
            prop_assert_eq!(merged(&merges, &word), merge_slowly(&merges, &word));
        }
    }
}
