//! The mean over the tokens of a window that becomes their compressed row.
//!
//! Ratio 128 pools its own 128 tokens. Ratio 4 overlaps: its inputs are twice as wide, and a
//! compressed row pools the first halves of the previous window's inputs with the second halves of
//! its own.

use ds4_common::math::exp;

/// Dimensions that are pooled together.
const POOLED: usize = 16;

/// Writes the compressed row of a window that closes to `out`: per dimension, the mean of the
/// values weighted by the softmax of the scores, in the order of the tokens.
///
/// `inputs` has the tokens in order, each with its values and then as many scores; the last `ratio`
/// are the window's own. The previous window's, if they are as wide as two rows, come before; a
/// sequence's first window has none, which weighs as much as scores of minus infinity: nothing.
#[inline(always)]
pub(super) fn pool(inputs: &[&[f32]], ratio: usize, out: &mut [f32]) {
    let window = WindowInputs {
        previous: inputs.len().saturating_sub(ratio),
        inputs,
        width: inputs.last().map_or(0, |input| input.len() / 2),
        dim: out.len(),
    };
    let (parts, rest) = out.as_chunks_mut::<POOLED>();
    for (i, out) in parts.iter_mut().enumerate() {
        window.pool_columns(i * POOLED, out);
    }
    let done = parts.len() * POOLED;
    for (i, out) in rest.iter_mut().enumerate() {
        window.pool_columns(done + i, std::array::from_mut(out));
    }
}

/// The inputs of a window that closes.
#[derive(Clone, Copy)]
struct WindowInputs<'a> {
    inputs: &'a [&'a [f32]],
    /// Inputs of the previous window, which come first.
    previous: usize,
    /// Values of an input, and its scores.
    width: usize,
    /// Width of a compressed row.
    dim: usize,
}

impl WindowInputs<'_> {
    /// Pools the dimensions `first..first + N` together, token by token, so that they fill vectors.
    #[inline(always)]
    fn pool_columns<const N: usize>(self, first: usize, out: &mut [f32; N]) {
        // The column in which a token holds dimension 0 of the row that closes: an input as wide
        // as two rows serves its own window with its second half.
        let own = self.width - self.dim;
        let values = |token: usize| {
            let column = if token < self.previous { 0 } else { own };
            &self.inputs[token][column + first..][..N]
        };
        let scores = |token: usize| {
            let column = if token < self.previous { 0 } else { own };
            &self.inputs[token][self.width + column + first..][..N]
        };
        let mut max = [f32::NEG_INFINITY; N];
        for token in 0..self.inputs.len() {
            for (max, &score) in max.iter_mut().zip(scores(token)) {
                *max = max.max(score);
            }
        }
        let mut total = [0.0; N];
        let mut sum = [0.0; N];
        for token in 0..self.inputs.len() {
            let (scores, values) = (scores(token), values(token));
            for j in 0..N {
                let weight = exp(scores[j] - max[j]);
                total[j] += weight;
                sum[j] += weight * values[j];
            }
        }
        for j in 0..N {
            out[j] = sum[j] / total[j];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooled(inputs: &[Vec<f32>], ratio: usize, dim: usize) -> Vec<f32> {
        let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
        let mut out = vec![0.0; dim];
        pool(&inputs, ratio, &mut out);
        out
    }

    #[test]
    fn equal_scores_give_the_mean_of_own_and_previous_window() {
        // First half 100 + p serves the next row, second half p serves its own.
        let input = |p: usize| vec![100.0 + p as f32, p as f32, 0.0, 0.0];
        let all: Vec<Vec<f32>> = (0..8).map(input).collect();
        assert_eq!(pooled(&all[..4], 4, 1), [1.5], "no previous window");
        let sum = 100.0 + 101.0 + 102.0 + 103.0 + 4.0 + 5.0 + 6.0 + 7.0;
        assert_eq!(pooled(&all, 4, 1), [sum / 8.0]);
    }

    /// A window before the first would have these inputs.
    #[test]
    fn no_previous_window_is_one_of_zeros_without_weight_to_the_bit() {
        let dim = 21;
        let float = |i: usize| ((i * 7919) % 1013) as f32 / 77.0 - 6.0;
        let input = |p: usize| (0..4 * dim).map(|i| float(p * 131 + i)).collect();
        let own: Vec<Vec<f32>> = (0..4).map(input).collect();
        let nothing: Vec<f32> = (0..4 * dim)
            .map(|i| if i < 2 * dim { 0.0 } else { f32::NEG_INFINITY })
            .collect();
        let both = [vec![nothing; 4], own.clone()].concat();
        let bits = |row: Vec<f32>| row.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(pooled(&own, 4, dim)), bits(pooled(&both, 4, dim)));
    }

    #[test]
    fn ratio_128_pools_its_own_window() {
        let input = |p: usize| vec![p as f32, 1.0, if p == 133 { 50.0 } else { 0.0 }, 0.0];
        let out = pooled(&(128..256).map(input).collect::<Vec<_>>(), 128, 2);
        assert!((out[0] - 133.0).abs() < 1e-3 && (out[1] - 1.0).abs() < 1e-6);
    }
}
