//! Chooses the next token from logits.
//!
//! Let p_i = exp((l_i - max l) / temperature) over the whole vocabulary, and sort the tokens by
//! descending l_i (equal ones by ascending id). The candidates are
//!
//! 1. the first `top_k` tokens,
//! 2. of these, the ones before the first with p_i < `min_p` (the largest p is 1),
//! 3. of these, the ones up to and including the one with which the sum of p reaches `top_p` of the
//!    sum over the whole vocabulary.
//!
//! One of them is drawn with a probability in proportion to p_i. Temperature 0 takes the first
//! token. Exponentials come from the crate `libm` and sums have a fixed order, so that a seed gives
//! the same tokens on every machine.
//!
//! Sources: top-k from A. Fan, M. Lewis, Y. Dauphin, "Hierarchical neural story generation", ACL
//! 2018; top-p from A. Holtzman et al., "The curious case of neural text degeneration", ICLR 2020;
//! min-p from M. Nguyen et al., "Turning up the heat: min-p sampling for creative and coherent LLM
//! outputs", ICLR 2025. The order of the filters and the sum that `top_p` refers to are defined
//! here.

use std::cmp::Ordering;

use ds4_common::random::XorShift64Star;
use thiserror::Error;

/// How tokens are chosen. The ranges are checked by [`Self::validate`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// From 0 to 2. 0 always takes the most likely token.
    pub temperature: f32,
    /// The most tokens to choose among; 0 for no limit.
    pub top_k: u32,
    /// The share of the probability to choose from, above 0 and at most 1; 1 for no limit.
    pub top_p: f32,
    /// The lowest probability to choose, relative to the highest, from 0 to 1; 0 for no limit.
    pub min_p: f32,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for SamplingParams {
    /// The values that DeepSeek recommends for these models.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 0.95,
            min_p: 0.0,
            seed: 0,
        }
    }
}

/// A parameter outside its range.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
#[error("`{field}` is {value}, but must be {range}")]
pub struct ParamError {
    /// Name of the parameter, as in requests.
    pub field: &'static str,
    /// The value that was refused.
    pub value: f32,
    /// The allowed range, in words.
    pub range: &'static str,
}

/// Why no token can be chosen from logits.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SampleError {
    /// The list is empty.
    #[error("there are no logits to choose from")]
    Empty,
    /// The logit of this token is NaN or plus infinity.
    #[error("the logit of token {0} is NaN or infinite")]
    NotFinite(usize),
    /// All logits are minus infinity.
    #[error("no token can be chosen: all logits are minus infinity")]
    NothingPossible,
}

impl SamplingParams {
    /// Checks that all parameters are in their ranges.
    ///
    /// # Errors
    /// [`ParamError`] for the first parameter outside its range.
    pub fn validate(&self) -> Result<(), ParamError> {
        let check = |field, value: f32, ok, range| {
            if ok {
                Ok(())
            } else {
                Err(ParamError {
                    field,
                    value,
                    range,
                })
            }
        };
        let t = self.temperature;
        check("temperature", t, (0.0..=2.0).contains(&t), "from 0 to 2")?;
        let p = self.top_p;
        check("top_p", p, p > 0.0 && p <= 1.0, "above 0 and at most 1")?;
        check(
            "min_p",
            self.min_p,
            (0.0..=1.0).contains(&self.min_p),
            "from 0 to 1",
        )
    }
}

/// Chooses the tokens of one answer; keeps its random state and its buffers from one token to the
/// next.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    random: XorShift64Star,
    /// p_i, by token.
    weights: Vec<f32>,
    /// All tokens, of which the first few are in descending order of their logits.
    order: Vec<u32>,
}

/// How many tokens are sorted at first. More are rarely needed.
const SORTED_AT_FIRST: usize = 256;

impl Sampler {
    /// A sampler for a new answer.
    ///
    /// # Errors
    /// [`ParamError`] if a parameter is outside its range.
    pub fn new(params: SamplingParams) -> Result<Self, ParamError> {
        params.validate()?;
        let random = XorShift64Star::new(params.seed);
        Ok(Self {
            params,
            random,
            weights: Vec::new(),
            order: Vec::new(),
        })
    }

    /// Chooses a token. `logits` has one value for each token of the vocabulary, in which minus
    /// infinity excludes a token.
    ///
    /// # Errors
    /// [`SampleError`] if a logit is NaN or plus infinity, or no token is possible.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SampleError> {
        let best = greedy(logits)?;
        if self.params.temperature == 0.0 || self.params.top_k == 1 {
            return Ok(best);
        }
        let max = logits[best as usize];
        let temperature = self.params.temperature;
        self.weights.clear();
        self.weights
            .extend(logits.iter().map(|l| libm::expf((l - max) / temperature)));
        let total: f64 = self.weights.iter().copied().map(f64::from).sum();
        self.order.clear();
        self.order.extend((0u32..).zip(logits).map(|(id, _)| id));
        let mut sorted = 0;
        let kept = self.kept(logits, total, &mut sorted);
        let target = self.random.unit() * kept.weight;
        let mut sum = 0.0;
        for place in 0..kept.tokens {
            self.sort_to(place, logits, &mut sorted);
            sum += f64::from(self.weights[self.order[place] as usize]);
            if sum > target {
                return Ok(self.order[place]);
            }
        }
        // Reached only by rounding, when the number drawn is next to 1: take the last token with
        // any probability.
        let possible = self.order[..kept.tokens]
            .iter()
            .rev()
            .find(|&&token| self.weights[token as usize] > 0.0);
        Ok(possible.copied().unwrap_or(best))
    }

    /// Applies the filters. The first tokens of `order`, as many as returned, are the candidates.
    fn kept(&mut self, logits: &[f32], total: f64, sorted: &mut usize) -> Kept {
        let SamplingParams {
            top_k,
            top_p,
            min_p,
            ..
        } = self.params;
        let most = match top_k as usize {
            0 => logits.len(),
            k => k.min(logits.len()),
        };
        if most == logits.len() && top_p >= 1.0 && min_p <= 0.0 {
            return Kept {
                tokens: most,
                weight: total,
            };
        }
        let enough = if top_p < 1.0 {
            f64::from(top_p) * total
        } else {
            f64::INFINITY
        };
        let mut weight = 0.0;
        for place in 0..most {
            self.sort_to(place, logits, sorted);
            let p = self.weights[self.order[place] as usize];
            if p < min_p {
                return Kept {
                    tokens: place,
                    weight,
                };
            }
            weight += f64::from(p);
            if weight >= enough {
                return Kept {
                    tokens: place + 1,
                    weight,
                };
            }
        }
        Kept {
            tokens: most,
            weight,
        }
    }

    /// Sorts tokens at least up to and including `place`.
    fn sort_to(&mut self, place: usize, logits: &[f32], sorted: &mut usize) {
        if place < *sorted {
            return;
        }
        let by_logit = |a: &u32, b: &u32| descending(logits, *a, *b);
        let end = (*sorted * 8)
            .max(SORTED_AT_FIRST)
            .max(place + 1)
            .min(self.order.len());
        if end < self.order.len() {
            self.order[*sorted..].select_nth_unstable_by(end - 1 - *sorted, by_logit);
        }
        self.order[*sorted..end].sort_unstable_by(by_logit);
        *sorted = end;
    }
}

/// The candidates that the filters leave: their number, and the sum of their p.
struct Kept {
    tokens: usize,
    weight: f64,
}

/// The most likely token; the lowest id among equally likely ones.
///
/// # Errors
/// [`SampleError`] if a logit is NaN or plus infinity, or no token is possible.
pub fn greedy(logits: &[f32]) -> Result<u32, SampleError> {
    let mut best: Option<(u32, f32)> = None;
    for (id, &logit) in (0u32..).zip(logits) {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(SampleError::NotFinite(id as usize));
        }
        if best.is_none_or(|(_, most)| logit > most) {
            best = Some((id, logit));
        }
    }
    match best {
        None => Err(SampleError::Empty),
        Some((_, f32::NEG_INFINITY)) => Err(SampleError::NothingPossible),
        Some((id, _)) => Ok(id),
    }
}

/// Natural logarithms of the probabilities of the chosen token and of the most likely ones.
#[derive(Clone, Debug, PartialEq)]
pub struct LogProbs {
    /// That of the chosen token.
    pub chosen: f32,
    /// The most likely tokens with theirs, in descending order.
    pub top: Vec<(u32, f32)>,
}

/// Natural logarithms of the probabilities at temperature 1 before any filter,
/// l_i - max l - ln Σ exp(l_j - max l), for `chosen` and the `top` most likely tokens.
///
/// # Errors
/// As [`greedy`]; [`SampleError::Empty`] also if there is no logit for `chosen`.
pub fn log_probs(logits: &[f32], chosen: u32, top: usize) -> Result<LogProbs, SampleError> {
    let max = f64::from(logits[greedy(logits)? as usize]);
    let sum: f64 = logits.iter().map(|&l| libm::exp(f64::from(l) - max)).sum();
    let normaliser = max + libm::log(sum);
    let log_prob = |logit: f32| (f64::from(logit) - normaliser) as f32;
    let own = logits.get(chosen as usize).ok_or(SampleError::Empty)?;
    // `top` is small, so the list of the best is kept sorted while the logits go by.
    let count = top.min(logits.len());
    let mut order: Vec<u32> = Vec::with_capacity(count + 1);
    for (id, _) in (0u32..).zip(logits) {
        let before_it = |other: &u32| descending(logits, *other, id) == Ordering::Less;
        if order.len() < count || order.last().is_some_and(|last| !before_it(last)) {
            order.insert(order.partition_point(before_it), id);
            order.truncate(count);
        }
    }
    let top = order
        .into_iter()
        .map(|id| (id, log_prob(logits[id as usize])))
        .collect();
    Ok(LogProbs {
        chosen: log_prob(*own),
        top,
    })
}

fn descending(logits: &[f32], a: u32, b: u32) -> Ordering {
    let (x, y) = (logits[a as usize], logits[b as usize]);
    // NaN was refused before; -0 and 0 are equal here as in `greedy`.
    y.partial_cmp(&x).unwrap_or(Ordering::Equal).then(a.cmp(&b))
}

#[cfg(test)]
mod tests;
