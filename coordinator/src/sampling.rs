//! Choosing the next token from logits.
//!
//! With p_i = exp((l_i - max l) / temperature) over the whole vocabulary and the tokens in
//! descending order of l_i (equal ones by ascending id), the choice is among
//!
//! 1. the first `top_k`,
//! 2. up to the first with p_i < `min_p` (the largest p is 1),
//! 3. up to and including the one with which the sum reaches `top_p` of the sum over the whole
//!    vocabulary,
//!
//! drawn with probabilities in proportion to p_i. Temperature 0 takes the first token.
//! Exponentials come from a library in plain Rust and sums have a fixed order, so a seed gives
//! the same tokens on every machine.

use std::cmp::Ordering;

use ds4_common::random::XorShift64Star;
use thiserror::Error;

/// The choice's parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 to 2; 0 always takes the likeliest token.
    pub temperature: f32,
    /// How many tokens to choose among at most; 0 for any number.
    pub top_k: u32,
    /// Above 0, up to 1: the share of probability to choose from; 1 for all.
    pub top_p: f32,
    /// 0 to 1: the lowest probability to choose, in relation to the highest; 0 for any.
    pub min_p: f32,
    /// Where the random numbers start.
    pub seed: u64,
}

impl Default for SamplingParams {
    /// What DeepSeek recommends for these models.
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
#[error("`{field}` is {value}, but it must be {range}")]
pub struct ParamError {
    /// The parameter.
    pub field: &'static str,
    /// Its value.
    pub value: f32,
    /// What it may be.
    pub range: &'static str,
}

/// Logits that nothing can be chosen from.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SampleError {
    /// There are none.
    #[error("there are no logits to choose from")]
    Empty,
    /// One is not a number, or infinitely likely.
    #[error("the logit of token {0} is NaN or infinite")]
    NotFinite(usize),
    /// All are minus infinity.
    #[error("no token is possible: all logits are minus infinity")]
    NothingPossible,
}

impl SamplingParams {
    /// Checks the ranges.
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

/// Chooses the tokens of one answer. Keeps its buffers from one token to the next.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    random: XorShift64Star,
    /// p_i by token.
    weights: Vec<f32>,
    /// Tokens; the first few of them in order.
    order: Vec<u32>,
}

/// How many tokens are put in order at first. Seldom are more needed.
const SORTED_AT_FIRST: usize = 256;

impl Sampler {
    /// A sampler at the beginning of an answer.
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

    /// Chooses a token. `logits` has one value for each token of the vocabulary; minus infinity
    /// excludes a token.
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
        // Only rounding leads here, when the drawn number is next to 1: the last token with any
        // probability is meant.
        let possible = self.order[..kept.tokens]
            .iter()
            .rev()
            .find(|&&token| self.weights[token as usize] > 0.0);
        Ok(possible.copied().unwrap_or(best))
    }

    /// Applies the filters.
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

    /// Puts tokens in order at least up to `place`.
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

/// How many tokens the filters leave, and the sum of their p.
struct Kept {
    tokens: usize,
    weight: f64,
}

/// The likeliest token; the lowest id of equally likely ones.
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

/// The chosen token's logarithmic probability, and those of the likeliest tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct LogProbs {
    /// Of the chosen token.
    pub chosen: f32,
    /// Token and logarithmic probability of the likeliest, in descending order.
    pub top: Vec<(u32, f32)>,
}

/// Natural logarithms of the probabilities at temperature 1 before any filter:
/// l_i - max l - ln Σ exp(l_j - max l).
///
/// # Errors
/// As [`greedy`]; [`SampleError::Empty`] also if there is no logit for `chosen`.
pub fn log_probs(logits: &[f32], chosen: u32, top: usize) -> Result<LogProbs, SampleError> {
    let max = f64::from(logits[greedy(logits)? as usize]);
    let sum: f64 = logits.iter().map(|&l| libm::exp(f64::from(l) - max)).sum();
    let normaliser = max + libm::log(sum);
    let log_prob = |logit: f32| (f64::from(logit) - normaliser) as f32;
    let own = logits.get(chosen as usize).ok_or(SampleError::Empty)?;
    // `top` is small, so the list of the best is kept in order as the logits go by.
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
