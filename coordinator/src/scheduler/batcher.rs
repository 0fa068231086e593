//! Decides what the next step holds. Pure: no clock, no model, no queue.
//!
//! Every running answer gets its token in every step, and prompts share what is left of the token
//! budget. While answers are running the prompts' share is smaller, because a step lasts as long
//! as its prefill and everybody who reads an answer waits for it.

/// How much a step may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchLimits {
    /// Prompt tokens in a step when nobody is decoding.
    pub prefill_tokens: usize,
    /// Prompt tokens in a step that also decodes.
    pub prefill_tokens_beside_decode: usize,
}

impl BatchLimits {
    /// Limits for prefill chunks of at most `chunk` tokens.
    #[must_use]
    pub(super) fn for_chunk(chunk: usize) -> Self {
        let chunk = chunk.max(1);
        BatchLimits {
            prefill_tokens: chunk,
            prefill_tokens_beside_decode: (chunk / 4).max(1),
        }
    }
}

/// What a running request has to feed the model next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// This many prompt tokens are still to be computed (at least one).
    Prefill(usize),
    /// One drawn token.
    Decode,
}

/// For every entry of `needs` (oldest request first), how many of its tokens the next step holds.
///
/// Prompts share the budget evenly: what a short one leaves goes to the others, and odd tokens go
/// to the oldest. So a short question never waits for the whole of a long document.
#[must_use]
pub(super) fn plan(needs: &[Need], limits: BatchLimits) -> Vec<usize> {
    let decoding = needs.iter().any(|need| matches!(need, Need::Decode));
    let budget = if decoding {
        limits.prefill_tokens_beside_decode
    } else {
        limits.prefill_tokens
    }
    .max(1);
    let mut shares: Vec<usize> = needs
        .iter()
        .map(|need| match need {
            Need::Decode => 1,
            Need::Prefill(_) => 0,
        })
        .collect();
    share_out(needs, budget, &mut shares);
    shares
}

/// Water filling: rounds of equal shares among the prompts that still want tokens.
fn share_out(needs: &[Need], mut budget: usize, shares: &mut [usize]) {
    while budget > 0 {
        let wanting = |i: usize, shares: &[usize]| match needs[i] {
            Need::Prefill(left) => left - shares[i],
            Need::Decode => 0,
        };
        let open = (0..needs.len()).filter(|&i| wanting(i, shares) > 0).count();
        if open == 0 {
            return;
        }
        let share = (budget / open).max(1);
        for i in 0..needs.len() {
            let take = wanting(i, shares).min(share).min(budget);
            shares[i] += take;
            budget -= take;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: BatchLimits = BatchLimits {
        prefill_tokens: 100,
        prefill_tokens_beside_decode: 20,
    };

    #[test]
    fn every_decode_gets_its_token_and_prefill_the_smaller_budget() {
        let needs = [Need::Decode, Need::Prefill(500), Need::Decode];
        assert_eq!(plan(&needs, LIMITS), [1, 20, 1]);
    }

    #[test]
    fn a_lone_prompt_gets_the_whole_budget() {
        assert_eq!(plan(&[Need::Prefill(500)], LIMITS), [100]);
        assert_eq!(plan(&[Need::Prefill(7)], LIMITS), [7]);
    }

    #[test]
    fn what_a_short_prompt_leaves_goes_to_the_long_one() {
        assert_eq!(
            plan(&[Need::Prefill(500), Need::Prefill(10)], LIMITS),
            [90, 10]
        );
        assert_eq!(
            plan(&[Need::Prefill(500), Need::Prefill(500)], LIMITS),
            [50, 50]
        );
    }

    #[test]
    fn odd_tokens_go_to_the_oldest() {
        let needs = [Need::Prefill(500); 3];
        assert_eq!(plan(&needs, LIMITS), [34, 33, 33]);
    }

    #[test]
    fn more_prompts_than_tokens_still_moves() {
        let limits = BatchLimits::for_chunk(2);
        assert_eq!(plan(&[Need::Prefill(5); 4], limits), [1, 1, 0, 0]);
    }

    fn need() -> impl Strategy<Value = Need> {
        prop_oneof![Just(Need::Decode), (1usize..3000).prop_map(Need::Prefill)]
    }

    proptest! {
        #[test]
        fn a_plan_never_overfills_and_never_starves_a_decode(
            needs in prop::collection::vec(need(), 1..20),
            chunk in 1usize..1000,
        ) {
            let limits = BatchLimits::for_chunk(chunk);
            let shares = plan(&needs, limits);
            let mut prefill = 0;
            let mut wanted = 0;
            for (need, &share) in needs.iter().zip(&shares) {
                match need {
                    Need::Decode => prop_assert_eq!(share, 1),
                    Need::Prefill(left) => {
                        prop_assert!(share <= *left);
                        prefill += share;
                        wanted += left;
                    }
                }
            }
            let budget = if needs.contains(&Need::Decode) {
                limits.prefill_tokens_beside_decode
            } else {
                limits.prefill_tokens
            };
            prop_assert_eq!(prefill, wanted.min(budget));
        }
    }
}
