//! Decides what the next step holds. Pure: no clock, no model, no queue.
//!
//! Every answer in progress gets its token in every step, and prompts share a budget of tokens.
//! While answers are in progress the budget is smaller, because a step lasts as long as its prefill
//! and delays every answer by that time.

/// How many prompt tokens a step may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchLimits {
    /// Prompt tokens in a step that decodes nothing.
    pub(super) prefill_tokens: usize,
    /// Prompt tokens in a step that also decodes.
    pub(super) prefill_tokens_beside_decode: usize,
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

/// What the model has to compute next for a running request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// The remaining prompt tokens (at least one).
    Prefill(usize),
    /// The token that was sampled last.
    Decode,
}

/// Returns, for every entry of `needs` (oldest request first), how many of its tokens the next step
/// holds.
///
/// Prompts share the budget evenly: what a short one leaves goes to the others, and the remainder
/// to the oldest. So a short question never waits for all of a long document.
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

/// Water filling: rounds of equal shares among the prompts that have tokens left.
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

    /// Plans until every prompt is computed; returns the step in which each was.
    fn steps_to_read(mut lengths: Vec<usize>, limits: BatchLimits) -> Vec<usize> {
        let mut done = vec![0; lengths.len()];
        for step in 1.. {
            let need = |&left: &usize| match left {
                0 => Need::Decode,
                left => Need::Prefill(left),
            };
            let needs: Vec<Need> = lengths.iter().map(need).collect();
            let shares = plan(&needs, limits);
            for (i, share) in shares
                .into_iter()
                .enumerate()
                .filter(|(_, share)| *share > 0)
            {
                if lengths[i] > 0 {
                    lengths[i] -= share;
                    done[i] = if lengths[i] == 0 { step } else { 0 };
                }
            }
            if lengths.iter().all(|left| *left == 0) {
                break;
            }
        }
        done
    }

    #[test]
    fn a_short_prompt_behind_long_ones_is_read_in_its_share_of_steps() {
        let done = steps_to_read(vec![10_000, 10_000, 60], BatchLimits::for_chunk(90));
        assert_eq!(done[2], 2);
        // Alone with one neighbour that decodes, a quarter of the budget is left.
        let done = steps_to_read(vec![1, 220], BatchLimits::for_chunk(88));
        assert_eq!(done, [1, 1 + (220 - 87_usize).div_ceil(22)]);
    }

    fn need() -> impl Strategy<Value = Need> {
        prop_oneof![Just(Need::Decode), (1usize..3000).prop_map(Need::Prefill)]
    }

    proptest! {
        #[test]
        fn every_prompt_is_read_in_the_end(
            lengths in prop::collection::vec(1usize..200, 1..12),
            chunk in 1usize..50,
        ) {
            let total: usize = lengths.iter().sum();
            let limits = BatchLimits::for_chunk(chunk);
            let steps = total.div_ceil(limits.prefill_tokens_beside_decode) + lengths.len();
            for done in steps_to_read(lengths, limits) {
                prop_assert!((1..=steps).contains(&done));
            }
        }

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
