//! Hyper-connections: the residual consists of `streams` parallel rows; each sublayer reads a mix
//! of them and adds its output to all, while a doubly stochastic matrix mixes the streams.

use ds4_common::math::{exp, rms_scale, sigmoid};

/// Streams that the fixed-size mixing state has room for; models with more are refused at load.
pub(crate) const MAX_STREAMS: usize = 8;

/// Mixing coefficients of one token around one sublayer, kept from mix-in to mix-out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mixing {
    /// Weight of every stream in the sublayer's input.
    pub(crate) pre: [f32; MAX_STREAMS],
    /// Weight of the sublayer's output in every stream.
    pub(crate) post: [f32; MAX_STREAMS],
    /// Weight of stream `r` in the new stream `c`, at `[r][c]`.
    pub(crate) streams: [[f32; MAX_STREAMS]; MAX_STREAMS],
}

/// Constants of one hyper-connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HcConstants<'a> {
    /// Factors of the mixing logits: pre, post, streams.
    pub(crate) scale: &'a [f32],
    /// Offsets of the mixing logits, `streams * (2 + streams)`.
    pub(crate) base: &'a [f32],
    /// Number of streams, at most [`MAX_STREAMS`].
    pub(crate) streams: usize,
    /// Sinkhorn iterations.
    pub(crate) iterations: usize,
    /// Added to the weights of the input, and to divisors.
    pub(crate) epsilon: f32,
}

/// Divides all streams of one token by their common root mean square.
#[inline(always)]
pub(crate) fn norm_streams(streams: &[f32], epsilon: f32, out: &mut [f32]) {
    let scale = rms_scale(streams, epsilon);
    for (o, v) in out.iter_mut().zip(streams) {
        *o = v * scale;
    }
}

/// The coefficients of one token from the `streams * (2 + streams)` mixing logits `m`.
pub(crate) fn mixing(m: &[f32], c: &HcConstants<'_>) -> Mixing {
    let n = c.streams;
    let mut mix = Mixing::default();
    for i in 0..n {
        mix.pre[i] = sigmoid(m[i] * c.scale[0] + c.base[i]) + c.epsilon;
        mix.post[i] = 2.0 * sigmoid(m[n + i] * c.scale[1] + c.base[n + i]);
    }
    for r in 0..n {
        for s in 0..n {
            let at = 2 * n + n * r + s;
            mix.streams[r][s] = m[at] * c.scale[2] + c.base[at];
        }
    }
    sinkhorn(&mut mix.streams, n, c.iterations, c.epsilon);
    mix
}

/// Makes the matrix doubly stochastic: row softmax, then alternating column and row normalisation,
/// columns last.
fn sinkhorn(a: &mut [[f32; MAX_STREAMS]; MAX_STREAMS], n: usize, iterations: usize, epsilon: f32) {
    for row in a.iter_mut().take(n) {
        let row = &mut row[..n];
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for v in row.iter_mut() {
            *v = exp(*v - max);
            sum += *v;
        }
        for v in row.iter_mut() {
            *v = *v / sum + epsilon;
        }
    }
    for pass in 0..iterations {
        if pass > 0 {
            for row in a.iter_mut().take(n) {
                let sum = row[..n].iter().sum::<f32>() + epsilon;
                row[..n].iter_mut().for_each(|v| *v /= sum);
            }
        }
        for column in 0..n {
            let sum = a[..n].iter().map(|row| row[column]).sum::<f32>() + epsilon;
            a[..n].iter_mut().for_each(|row| row[column] /= sum);
        }
    }
}

/// out = Σ_i weights[i] · S[i].
#[inline(always)]
pub(crate) fn mix_in(streams: &[f32], weights: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for (stream, &w) in streams.chunks_exact(out.len()).zip(weights) {
        for (o, v) in out.iter_mut().zip(stream) {
            *o += w * v;
        }
    }
}

/// S'[c] = post_c · y + Σ_r A[r][c] · S[r], in place.
#[inline(always)]
pub(crate) fn mix_out(streams: &mut [f32], y: &[f32], mix: &Mixing, count: usize) {
    let hidden = y.len();
    let (whole, rest) = y.as_chunks::<COLUMNS>();
    for (i, y) in whole.iter().enumerate() {
        mix_columns(streams, hidden, i * COLUMNS, y, mix, count);
    }
    for (i, y) in rest.iter().enumerate() {
        let at = whole.len() * COLUMNS + i;
        mix_columns(streams, hidden, at, std::array::from_ref(y), mix, count);
    }
}

/// Columns that [`mix_out`] processes together, so that they fill vectors.
const COLUMNS: usize = 16;

#[inline(always)]
fn mix_columns<const N: usize>(
    streams: &mut [f32],
    hidden: usize,
    at: usize,
    y: &[f32; N],
    mix: &Mixing,
    count: usize,
) {
    let mut old = [[0.0; N]; MAX_STREAMS];
    for (r, old) in old.iter_mut().enumerate().take(count) {
        old.copy_from_slice(&streams[r * hidden + at..][..N]);
    }
    for c in 0..count {
        let mut sum = y.map(|y| mix.post[c] * y);
        for (r, old) in old.iter().enumerate().take(count) {
            let factor = mix.streams[r][c];
            for (sum, o) in sum.iter_mut().zip(old) {
                *sum += factor * o;
            }
        }
        streams[c * hidden + at..][..N].copy_from_slice(&sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_sinkhorn_vector() {
        let m: Vec<f32> = (0..24)
            .map(|i| 0.1 * (i + 1) as f32 * if i % 2 == 0 { 1.0 } else { -1.0 })
            .collect();
        let base: Vec<f32> = (0..24).map(|i| 0.01 * i as f32).collect();
        let constants = HcConstants {
            scale: &[0.5, 0.25, 2.0],
            base: &base,
            streams: 4,
            iterations: 20,
            epsilon: 1e-6,
        };
        let mix = mixing(&m, &constants);
        let close = |found: &[f32], want: [f32; 4]| {
            for (f, w) in found.iter().zip(want) {
                assert!((f - w).abs() < 1e-6, "{found:?} is not {want:?}");
            }
        };
        close(
            &mix.pre,
            [0.512_498_4, 0.477_516_2, 0.542_398_9, 0.457_603_1],
        );
        close(
            &mix.post,
            [1.082_313_3, 0.950_041_6, 1.116_962_2, 0.935_091_4],
        );
        close(
            &mix.streams[0],
            [0.041_722_1, 0.458_395_5, 0.041_722_1, 0.458_159_4],
        );
        close(
            &mix.streams[1],
            [0.155_335, 0.344_718_2, 0.155_335, 0.344_610_9],
        );
        close(
            &mix.streams[2],
            [0.345_021_9, 0.154_923_7, 0.345_021_9, 0.155_031_4],
        );
        close(
            &mix.streams[3],
            [0.457_92, 0.041_961_6, 0.457_92, 0.042_197_3],
        );
        for column in 0..4 {
            let sum: f32 = mix.streams.iter().map(|row| row[column]).sum();
            assert!((sum - 1.0).abs() < 2e-6);
        }
    }

    #[test]
    fn mixing_out_sums_over_the_first_index() {
        let mut mix = Mixing {
            post: [1.0; MAX_STREAMS],
            ..Mixing::default()
        };
        mix.streams[0][1] = 1.0;
        let mut streams = vec![5.0, 7.0];
        mix_out(&mut streams, &[100.0], &mix, 2);
        assert_eq!(streams, vec![100.0, 105.0]);
    }
}
