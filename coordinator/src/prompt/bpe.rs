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

/// All merges of a vocabulary.
#[derive(Debug, Default)]
pub(super) struct Merges {
    by_pair: HashMap<(u32, u32), Merge>,
    /// The left token and the rank of every merge, in order.
    by_left: Vec<(u32, u32)>,
    /// Whether every token is made by lower ranks than those it is joined further with, so that the
    /// ranks of the joins of a word never decrease.
    ascending: bool,
}

impl Merges {
    /// The merges as pairs and what they become; `Err` with the index of a pair that was there
    /// before.
    pub(super) fn new(list: impl IntoIterator<Item = ((u32, u32), Merge)>) -> Result<Self, usize> {
        let mut merges = Merges::default();
        let mut made: HashMap<u32, u32> = HashMap::new();
        for (i, (pair, merge)) in list.into_iter().enumerate() {
            if merges.by_pair.insert(pair, merge).is_some() {
                return Err(i);
            }
            merges.by_left.push((pair.0, merge.rank));
            let last = made.entry(merge.token).or_insert(merge.rank);
            *last = merge.rank.max(*last);
        }
        merges.by_left.sort_unstable();
        let made_before = |token: &u32, rank: u32| made.get(token).is_none_or(|&made| made < rank);
        merges.ascending = merges.by_pair.iter().all(|((left, right), merge)| {
            made_before(left, merge.rank) && made_before(right, merge.rank)
        });
        Ok(merges)
    }

    fn get(&self, left: u32, right: u32) -> Option<Merge> {
        self.by_pair.get(&(left, right)).copied()
    }

    /// The lowest rank of at least `least` with which `left` can be joined to a token after it.
    fn rank_after(&self, left: u32, least: u32) -> Option<u32> {
        let at = self.by_left.partition_point(|entry| *entry < (left, least));
        let &(token, rank) = self.by_left.get(at)?;
        (token == left).then_some(rank)
    }
}

/// A token of the word, with the indices of its neighbours.
#[derive(Clone, Copy, Debug)]
struct LinkedToken {
    token: u32,
    previous: u32,
    next: u32,
}

/// The index of a neighbour that does not exist.
const NONE: u32 = u32::MAX;

/// A pair that may be joined, ordered by rank, then by place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    at: u32,
    /// The two tokens when the candidate was queued. It is stale once one of them has changed.
    pair: (u32, u32),
}

/// Bytes of a word that are merged at a time, so that no word takes memory for more: 28 bytes for
/// each of them.
const WINDOW: usize = 16 << 10;

/// Merges words; keeps its buffers from one word to the next.
#[derive(Debug)]
pub(super) struct Merger {
    tokens: Vec<LinkedToken>,
    queue: BinaryHeap<Reverse<Candidate>>,
    window: usize,
}

impl Default for Merger {
    fn default() -> Self {
        Merger {
            tokens: Vec::new(),
            queue: BinaryHeap::new(),
            window: WINDOW,
        }
    }
}

impl Merger {
    /// Joins the neighbours of lowest rank, the leftmost first, until no pair can be joined, and
    /// hands `out` the tokens that remain of `word`, some at a time. `out` returns whether it wants
    /// more. `byte_tokens` are the tokens of single bytes.
    ///
    /// O(n log n): each join leaves one token less and adds at most two candidates.
    ///
    /// A long word is merged in windows. What the bytes behind a window may change is not known in
    /// it, so only the tokens before it count (see [`Merger::merge_open`]), and the next window
    /// begins behind them: no join of the whole word crosses that place.
    pub(super) fn merge(
        &mut self,
        merges: &Merges,
        word: &[u8],
        byte_tokens: &[u32; 256],
        out: &mut dyn FnMut(&mut dyn Iterator<Item = u32>) -> bool,
    ) {
        let (mut rest, mut width) = (word, self.window);
        while merges.ascending && rest.len() > width {
            self.load(merges, &rest[..width], byte_tokens);
            let certain = self.merge_open(merges);
            // Too little is certain: a longer window keeps the time linear.
            if certain == 0 || certain < width / 2 {
                width *= 2;
                continue;
            }
            if !out(&mut self.remaining(certain)) {
                return;
            }
            rest = &rest[certain..];
            width = self.window;
        }
        self.load(merges, rest, byte_tokens);
        while let Some(Reverse(candidate)) = self.queue.pop() {
            self.join(merges, candidate, NONE);
        }
        out(&mut self.remaining(rest.len()));
    }

    /// The tokens that are left of the first `bytes`.
    fn remaining(&self, bytes: usize) -> impl Iterator<Item = u32> {
        let tokens = self.tokens[..bytes].iter().map(|linked| linked.token);
        tokens.filter(|token| *token != JOINED)
    }

    fn load(&mut self, merges: &Merges, word: &[u8], byte_tokens: &[u32; 256]) {
        let length = word.len();
        self.tokens.clear();
        self.tokens.reserve_exact(length);
        self.tokens
            .extend(word.iter().enumerate().map(|(i, byte)| LinkedToken {
                token: byte_tokens[usize::from(*byte)],
                previous: (i as u32).wrapping_sub(1),
                next: if i + 1 < length { i as u32 + 1 } else { NONE },
            }));
        self.queue.clear();
        for at in 0..length {
            self.consider(merges, at as u32);
        }
    }

    /// Merges what was loaded as the beginning of a longer word. Returns how many of its bytes come
    /// out as in the whole word, whatever follows.
    ///
    /// Joins happen in the order of their ranks. At every rank, the tokens before `edge` are those
    /// of the whole word; the ones behind it may differ. The last token before it stays certain
    /// until a rank comes with which it could be joined to something behind it: then it may have
    /// been, and the edge moves before it. From a rank on only higher ones follow, so each further
    /// token needs a higher rank to become uncertain.
    fn merge_open(&mut self, merges: &Merges) -> usize {
        let mut edge = NONE;
        let mut last = self.tokens.len() as u32 - 1;
        let mut uncertain_at = merges.rank_after(self.token(last), 0);
        loop {
            let next = self.queue.peek().map(|Reverse(candidate)| *candidate);
            // Of equal ranks the leftmost comes first, and what crosses the edge is rightmost.
            match (next, uncertain_at) {
                (None, None) => break,
                (Some(candidate), rank) if rank.is_none_or(|rank| candidate.rank <= rank) => {
                    self.queue.pop();
                    if self.join(merges, candidate, edge)
                        && self.tokens[candidate.at as usize].next == edge
                    {
                        last = candidate.at;
                        uncertain_at = merges.rank_after(self.token(last), candidate.rank + 1);
                    }
                }
                (_, Some(rank)) => {
                    edge = last;
                    last = self.tokens[edge as usize].previous;
                    if last == NONE {
                        return 0;
                    }
                    uncertain_at = merges.rank_after(self.token(last), rank + 1);
                }
                (Some(_), None) => break,
            }
        }
        match edge {
            NONE => self.tokens.len(),
            edge => edge as usize,
        }
    }

    fn token(&self, at: u32) -> u32 {
        self.tokens[at as usize].token
    }

    /// Queues the pair that starts at `at`, if it can be joined.
    fn consider(&mut self, merges: &Merges, at: u32) {
        let LinkedToken { token, next, .. } = self.tokens[at as usize];
        if next == NONE {
            return;
        }
        let pair = (token, self.token(next));
        if let Some(merge) = merges.get(pair.0, pair.1) {
            self.queue.push(Reverse(Candidate {
                rank: merge.rank,
                at,
                pair,
            }));
        }
    }

    /// Joins the pair of a candidate that is not stale and lies before `edge`; returns whether it
    /// was.
    fn join(&mut self, merges: &Merges, Candidate { at, pair, .. }: Candidate, edge: u32) -> bool {
        let LinkedToken {
            token,
            previous,
            next,
        } = self.tokens[at as usize];
        if token != pair.0 || next >= edge || self.token(next) != pair.1 {
            return false;
        }
        let Some(merge) = merges.get(pair.0, pair.1) else {
            return false;
        };
        let after = self.tokens[next as usize].next;
        self.tokens[at as usize] = LinkedToken {
            token: merge.token,
            previous,
            next: after,
        };
        self.tokens[next as usize].token = JOINED;
        if after != NONE {
            self.tokens[after as usize].previous = at;
        }
        self.consider(merges, at);
        if previous != NONE {
            self.consider(merges, previous);
        }
        true
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

    fn byte_tokens() -> [u32; 256] {
        std::array::from_fn(|byte| byte as u32)
    }

    fn merges(list: &[(u32, u32, u32)]) -> Merges {
        let merge = |(rank, &(left, right, token)): (usize, &(u32, u32, u32))| {
            let rank = rank as u32;
            ((left, right), Merge { rank, token })
        };
        Merges::new(list.iter().enumerate().map(merge)).unwrap()
    }

    /// The definition, one join at a time.
    fn merge_slowly(merges: &Merges, word: &[u8]) -> Vec<u32> {
        let mut word: Vec<u32> = word.iter().map(|byte| u32::from(*byte)).collect();
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

    fn merged_in(merger: &mut Merger, merges: &Merges, word: &[u8]) -> Vec<u32> {
        let mut out = Vec::new();
        merger.merge(merges, word, &byte_tokens(), &mut |tokens| {
            out.extend(tokens);
            true
        });
        out
    }

    fn merged(merges: &Merges, word: &[u8]) -> Vec<u32> {
        merged_in(&mut Merger::default(), merges, word)
    }

    #[test]
    fn equal_ranks_are_joined_from_the_left() {
        let merges = merges(&[(0, 0, 300)]);
        assert_eq!(merged(&merges, &[0, 0, 0]), [300, 0]);
    }

    #[test]
    fn a_pair_that_stands_twice_is_found() {
        let merge = |rank| ((1, 2), Merge { rank, token: 300 });
        assert_eq!(Merges::new([merge(0), merge(1)]).err(), Some(1));
    }

    #[test]
    fn a_long_word_takes_linear_time_and_a_windows_memory() {
        let merges = merges(&[(0, 0, 301), (301, 301, 302), (302, 302, 303)]);
        let start = Instant::now();
        let mut merger = Merger::default();
        let out = merged_in(&mut merger, &merges, &vec![0; 1_000_000]);
        assert_eq!(out, vec![303; 125_000]);
        assert!(merger.tokens.capacity() <= super::WINDOW);
        assert!(merger.queue.capacity() <= 4 * super::WINDOW);
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "took {:?}",
            start.elapsed()
        );
    }

    #[test]
    fn a_receiver_that_has_enough_ends_the_work() {
        let merges = merges(&[(0, 0, 301)]);
        let mut calls = 0;
        Merger::default().merge(&merges, &vec![0; 1_000_000], &byte_tokens(), &mut |_| {
            calls += 1;
            calls < 3
        });
        assert_eq!(calls, 3);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn equals_the_definition(
            list in prop::collection::vec((0u32..6, 0u32..6), 0..12),
            word in prop::collection::vec(0u8..4, 0..30),
        ) {
            let mut seen = Vec::new();
            for (left, right) in list {
                // Tokens 4 and 5 only come from merges; results may themselves be merged again.
                if !seen.iter().any(|&(l, r, _)| (l, r) == (left, right)) {
                    seen.push((left, right, 4 + seen.len() as u32 % 2));
                }
            }
            let merges = merges(&seen);
            let mut merger = Merger { window: 4, ..Merger::default() };
            prop_assert_eq!(merged_in(&mut merger, &merges, &word), merge_slowly(&merges, &word));
        }

        /// Each merge makes a token of its own from earlier ones, as in a trained vocabulary.
        #[test]
        fn windows_change_nothing(
            list in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..40),
            word in prop::collection::vec(0u8..3, 0..120),
            window in 1usize..20,
        ) {
            let mut seen: Vec<(u32, u32, u32)> = Vec::new();
            for (left, right) in list {
                let tokens = 3 + seen.len();
                let id = |index: prop::sample::Index| match index.index(tokens) as u32 {
                    byte @ 0..3 => byte,
                    made => 300 + made - 3,
                };
                let (left, right) = (id(left), id(right));
                if !seen.iter().any(|&(l, r, _)| (l, r) == (left, right)) {
                    seen.push((left, right, 300 + seen.len() as u32));
                }
            }
            let merges = merges(&seen);
            prop_assert!(merges.ascending);
            let mut merger = Merger { window, ..Merger::default() };
            prop_assert_eq!(merged_in(&mut merger, &merges, &word), merge_slowly(&merges, &word));
        }
    }
}
