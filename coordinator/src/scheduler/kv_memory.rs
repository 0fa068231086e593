//! How long a request may become, given the memory for KV caches.
//!
//! A request leaves the queue when its caches fit at their longest beside those of all running
//! requests, so that a shortage of memory neither cuts an answer short nor ends the process.

use std::fmt;

use super::request::AdmissionError;

/// The budget, and what a sequence takes of it.
pub(super) struct KvMemory {
    /// Bytes that the caches of all running requests may occupy.
    budget: u64,
    /// Never decreases with the number of tokens.
    bytes_of: BytesOf,
    /// Tokens of the longest sequence that fits and that the model allows.
    longest: usize,
    /// Tokens of a sequence that takes an equal share of the budget, at least [`LEAST_SHARE`].
    share: usize,
}

/// Tokens to which a request without a limit may always grow, even if fewer requests then fit at
/// once: better fewer requests at once than truncated answers.
const LEAST_SHARE: usize = 4096;

/// Bytes that a sequence occupies, as a function of its length in tokens.
pub type BytesOf = Box<dyn Fn(usize) -> u64 + Send + Sync>;

/// What a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KvGrant {
    /// Most tokens of the answer.
    pub(super) max_tokens: usize,
    /// Bytes of the caches of prompt and answer.
    pub(super) bytes: u64,
}

impl fmt::Debug for KvMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvMemory")
            .field("budget", &self.budget)
            .field("longest", &self.longest)
            .finish_non_exhaustive()
    }
}

impl KvMemory {
    /// A budget of bytes for `max_running` sequences at once of at most `context` tokens each.
    pub(super) fn new(budget: u64, bytes_of: BytesOf, max_running: usize, context: usize) -> Self {
        let longest = most_tokens(&bytes_of, budget, context);
        let share = most_tokens(&bytes_of, budget / max_running.max(1) as u64, longest);
        KvMemory {
            budget,
            bytes_of,
            longest,
            share: share.max(LEAST_SHARE.min(longest)),
        }
    }

    /// Tokens of the longest sequence that fits and that the model allows.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// Bytes of a sequence of `tokens` tokens.
    pub(super) fn bytes_of(&self, tokens: usize) -> u64 {
        (self.bytes_of)(tokens)
    }

    /// The grant for a request whose prompt is shorter than the context. Without a limit of its
    /// own, its answer may fill an equal share of the budget, or half of one after a long prompt:
    /// with the whole budget, the first request would occupy the server alone.
    pub(super) fn grant(
        &self,
        prompt: usize,
        max_tokens: Option<usize>,
        context: usize,
    ) -> Result<KvGrant, AdmissionError> {
        let total = match max_tokens {
            Some(wanted) => prompt.saturating_add(wanted.max(1)).min(context),
            None => self
                .share
                .max(prompt + self.share.div_ceil(2))
                .min(self.longest)
                .max(prompt + 1),
        };
        let bytes = self.bytes_of(total);
        if bytes > self.budget {
            return Err(AdmissionError::KvMemory {
                prompt,
                answer: total - prompt,
                bytes,
                budget: self.budget,
                longest: self.longest,
            });
        }
        Ok(KvGrant {
            max_tokens: total - prompt,
            bytes,
        })
    }
}

/// The largest number of tokens, up to `most`, whose bytes are within `budget`.
fn most_tokens(bytes_of: &BytesOf, budget: u64, most: usize) -> usize {
    let (mut fits, mut beyond) = (0, most.saturating_add(1));
    while beyond - fits > 1 {
        let middle = fits + (beyond - fits) / 2;
        if bytes_of(middle) <= budget {
            fits = middle;
        } else {
            beyond = middle;
        }
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 10 bytes per token and 100 per sequence.
    fn memory(budget: u64, max_running: usize, context: usize) -> KvMemory {
        let bytes_of = Box::new(|tokens: usize| 100 + 10 * tokens as u64);
        KvMemory::new(budget, bytes_of, max_running, context)
    }

    #[test]
    fn the_longest_sequence_is_found_exactly() {
        for (budget, longest) in [(0, 0), (109, 0), (110, 1), (119, 1), (1100, 100)] {
            assert_eq!(memory(budget, 1, 1000).longest(), longest, "{budget}");
        }
        assert_eq!(memory(u64::MAX, 1, 1000).longest(), 1000);
    }

    #[test]
    fn a_given_limit_is_kept_or_refused() {
        let memory = memory(1100, 4, 1000);
        let grant = memory.grant(20, Some(80), 1000).expect("it fits");
        assert_eq!((grant.max_tokens, grant.bytes), (80, 1100));
        assert_eq!(
            memory.grant(20, Some(81), 1000),
            Err(AdmissionError::KvMemory {
                prompt: 20,
                answer: 81,
                bytes: 1110,
                budget: 1100,
                longest: 100,
            })
        );
        // Tokens beyond the context need nothing.
        let grant = memory.grant(20, Some(usize::MAX), 60).expect("it fits");
        assert_eq!((grant.max_tokens, grant.bytes), (40, 700));
    }

    #[test]
    fn a_request_without_a_limit_gets_a_share() {
        const CONTEXT: usize = 1_000_000;
        let total = |memory: &KvMemory, prompt| {
            let grant = memory.grant(prompt, None, CONTEXT);
            grant.map(|grant| (prompt + grant.max_tokens, grant.bytes))
        };
        // A quarter holds 39990 tokens, all of it 159990.
        let four = memory(1_600_000, 4, CONTEXT);
        for (prompt, tokens) in [
            (1, 39_990),
            (15_000, 39_990),
            (40_000, 59_995),
            (159_989, 159_990),
        ] {
            let (found, bytes) = total(&four, prompt).expect("it fits");
            assert_eq!(found, tokens, "after {prompt}");
            assert!(found > 39_990 || 4 * bytes <= 1_600_000);
        }
        assert!(total(&four, 159_990).is_err());
        // Better one after the other than too short.
        let few = memory(80_100, 8, CONTEXT);
        assert_eq!(total(&few, 10).expect("it fits").0, LEAST_SHARE);
        // With plenty of memory the context is the only limit.
        let plenty = memory(u64::MAX, 4, CONTEXT);
        assert_eq!(total(&plenty, 7).expect("it fits").0, CONTEXT);
    }
}
