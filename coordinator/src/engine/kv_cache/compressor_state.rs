//! The open window of a compressor: values and scores of its tokens, pooled when it closes.
//!
//! Ratio 128 pools its own 128 tokens. Ratio 4 overlaps: its rows are twice as wide, and a
//! compressed row pools the first halves of the previous window's rows with the second halves of
//! its own.

use ds4_common::math::exp;

/// Dimensions that are pooled together.
const POOLED: usize = 16;

/// The open window of one compressor of one sequence.
#[derive(Debug)]
pub(crate) struct CompressorState {
    /// Width of a compressed row.
    dim: usize,
    /// Tokens per compressed row.
    ratio: usize,
    /// `(slots x width)`, one slot per token; overlapping windows keep the previous window in the
    /// first half of the slots.
    values: Vec<f32>,
    /// Logits of the pooling weights, laid out as the values.
    scores: Vec<f32>,
}

impl CompressorState {
    pub(crate) fn new(dim: usize, ratio: usize) -> Self {
        let elements = Self::elements(dim, ratio);
        CompressorState {
            dim,
            ratio,
            values: vec![0.0; elements],
            scores: vec![f32::NEG_INFINITY; elements],
        }
    }

    /// Number of values, and of scores.
    fn elements(dim: usize, ratio: usize) -> usize {
        ratio * overlap(ratio) * Self::width(dim, ratio)
    }

    /// Bytes of a state.
    pub(crate) fn bytes(dim: usize, ratio: usize) -> usize {
        2 * size_of::<f32>() * Self::elements(dim, ratio)
    }

    /// Bytes of this state.
    pub(crate) fn held_bytes(&self) -> usize {
        size_of_val(self.values.as_slice()) + size_of_val(self.scores.as_slice())
    }

    /// Tokens per compressed row.
    pub(crate) fn ratio(&self) -> usize {
        self.ratio
    }

    /// Columns of the value and score projections.
    pub(crate) fn width(dim: usize, ratio: usize) -> usize {
        dim * overlap(ratio)
    }

    /// Takes the token at `position`, whose scores are `scores + bias`.
    pub(crate) fn take(&mut self, position: usize, value: &[f32], scores: &[f32], bias: &[f32]) {
        let width = Self::width(self.dim, self.ratio);
        let slot = (overlap(self.ratio) - 1) * self.ratio + position % self.ratio;
        let at = slot * width;
        self.values[at..at + width].copy_from_slice(value);
        let stored = self.scores[at..at + width].iter_mut();
        for ((stored, s), b) in stored.zip(scores).zip(bias) {
            *stored = s + b;
        }
    }

    /// Whether the token at `position` is the last one of its window.
    pub(crate) fn closes(&self, position: usize) -> bool {
        position % self.ratio + 1 == self.ratio
    }

    /// Keeps the window that just closed as the previous one, where windows overlap.
    pub(crate) fn slide(&mut self) {
        if overlap(self.ratio) == 2 {
            let half = self.values.len() / 2;
            self.values.copy_within(half.., 0);
            self.scores.copy_within(half.., 0);
        }
    }

    /// Writes the compressed row of a window that closes to `out` (`dim` values): per dimension,
    /// the softmax-weighted mean over all slots.
    #[inline(always)]
    pub(crate) fn pool(&self, out: &mut [f32]) {
        let (parts, rest) = out.as_chunks_mut::<POOLED>();
        for (i, out) in parts.iter_mut().enumerate() {
            self.pool_columns(i * POOLED, out);
        }
        let done = parts.len() * POOLED;
        for (i, out) in rest.iter_mut().enumerate() {
            self.pool_columns(done + i, std::array::from_mut(out));
        }
    }

    /// Pools the dimensions `first..first + N` together, slot by slot, so that they fill vectors.
    #[inline(always)]
    fn pool_columns<const N: usize>(&self, first: usize, out: &mut [f32; N]) {
        let width = Self::width(self.dim, self.ratio);
        let slots = self.values.len() / width;
        // The column in which a slot holds dimension 0 of the row that closes.
        let column = |slot: usize| {
            if overlap(self.ratio) == 2 && slot >= self.ratio {
                self.dim
            } else {
                0
            }
        };
        let at = |slot: usize| slot * width + column(slot) + first;
        let mut max = [f32::NEG_INFINITY; N];
        for slot in 0..slots {
            let scores = &self.scores[at(slot)..][..N];
            for (max, &score) in max.iter_mut().zip(scores) {
                *max = max.max(score);
            }
        }
        let mut total = [0.0; N];
        let mut sum = [0.0; N];
        for slot in 0..slots {
            let scores = &self.scores[at(slot)..][..N];
            let values = &self.values[at(slot)..][..N];
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

/// How many windows a compressed row pools.
fn overlap(ratio: usize) -> usize {
    if ratio == 4 { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the token closed a window; its row is in `out` then.
    fn push(
        state: &mut CompressorState,
        p: usize,
        value: &[f32],
        score: &[f32],
        out: &mut [f32],
    ) -> bool {
        state.take(p, value, score, &[0.0, 0.0]);
        if state.closes(p) {
            state.pool(out);
            state.slide();
        }
        state.closes(p)
    }

    #[test]
    fn equal_scores_give_the_mean_of_own_and_previous_window() {
        let mut state = CompressorState::new(1, 4);
        let mut out = [0.0];
        let mut entries = Vec::new();
        for p in 0..8 {
            // First half 100 + p serves the next entry, second half p serves its own.
            let value = [100.0 + p as f32, p as f32];
            if push(&mut state, p, &value, &[0.0, 0.0], &mut out) {
                entries.push(out[0]);
            }
        }
        assert_eq!(
            entries[0], 1.5,
            "no previous window: rows 0..3 weigh nothing"
        );
        assert_eq!(
            entries[1],
            (100.0 + 101.0 + 102.0 + 103.0 + 4.0 + 5.0 + 6.0 + 7.0) / 8.0
        );
    }

    #[test]
    fn ratio_128_pools_its_own_window() {
        let mut state = CompressorState::new(2, 128);
        let mut out = [0.0; 2];
        let closed: Vec<usize> = (0..256)
            .filter(|&p| {
                let score = [if p % 128 == 5 { 50.0 } else { 0.0 }, 0.0];
                push(&mut state, p, &[p as f32, 1.0], &score, &mut out)
            })
            .collect();
        assert_eq!(closed, [127, 255]);
        assert!((out[0] - 133.0).abs() < 1e-3 && (out[1] - 1.0).abs() < 1e-6);
    }
}
