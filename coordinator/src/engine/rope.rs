//! Rotary position embedding on interleaved pairs of a row's last `dims` values, with the YaRN
//! frequency ramp on layers that compress.

use ds4_common::math::sin_cos;
use ds4_common::model::{HyperParams, Yarn};

/// Frequencies of one kind of layer.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    /// Radians per position, one for each pair.
    frequencies: Vec<f32>,
}

impl Rope {
    /// For layers that attend to the window alone: plain frequencies.
    pub(crate) fn window_only(hp: &HyperParams) -> Self {
        Rope {
            frequencies: frequencies(hp.rope_dims, f64::from(hp.rope_base), None),
        }
    }

    /// For layers that compress: a larger base, interpolated by YaRN without a magnitude factor.
    pub(crate) fn compressing(hp: &HyperParams) -> Self {
        let base = f64::from(hp.compress_rope_base);
        Rope {
            frequencies: frequencies(hp.rope_dims, base, hp.yarn.as_ref()),
        }
    }

    /// Values of a row that are rotated.
    pub(crate) fn dims(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Writes (sin, cos) of every pair at `position`.
    pub(crate) fn angles(&self, position: usize, out: &mut Vec<(f32, f32)>) {
        let position = position as f32;
        out.clear();
        out.extend(self.frequencies.iter().map(|f| sin_cos(position * f)));
    }
}

fn frequencies(dims: usize, base: f64, yarn: Option<&Yarn>) -> Vec<f32> {
    (0..dims / 2)
        .map(|i| {
            let plain = libm::pow(base, -((2 * i) as f64) / dims as f64);
            let Some(yarn) = yarn else {
                return plain as f32;
            };
            let ramp = yarn_ramp(i, dims, base, yarn);
            (plain * (1.0 - ramp) + plain / f64::from(yarn.factor) * ramp) as f32
        })
        .collect()
}

/// 0 where a pair turns fast enough to keep its frequency, 1 where it is fully interpolated.
fn yarn_ramp(pair: usize, dims: usize, base: f64, yarn: &Yarn) -> f64 {
    let context = f64::from(yarn.original_context as f32);
    let turns_at = |beta: f32| {
        let turns = context / (f64::from(beta) * 2.0 * std::f64::consts::PI);
        dims as f64 * libm::log(turns) / (2.0 * libm::log(base))
    };
    let last = (dims - 1) as f64;
    let low = turns_at(yarn.beta_fast).floor().clamp(0.0, last);
    let high = turns_at(yarn.beta_slow).ceil().clamp(0.0, last);
    let width = if high > low { high - low } else { 0.001 };
    ((pair as f64 - low) / width).clamp(0.0, 1.0)
}

/// Rotates the last `2 * angles.len()` values of `row`.
#[inline(always)]
pub(crate) fn rotate(row: &mut [f32], angles: &[(f32, f32)]) {
    let start = row.len() - 2 * angles.len();
    for (pair, &(sin, cos)) in row[start..].chunks_exact_mut(2).zip(angles) {
        (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
    }
}

/// Undoes [`rotate`].
pub(crate) fn rotate_back(row: &mut [f32], angles: &[(f32, f32)]) {
    let start = row.len() - 2 * angles.len();
    for (pair, &(sin, cos)) in row[start..].chunks_exact_mut(2).zip(angles) {
        (pair[0], pair[1]) = (pair[0] * cos + pair[1] * sin, pair[1] * cos - pair[0] * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f32, want: f64) {
        assert!(
            (f64::from(found) / want - 1.0).abs() < 1e-6,
            "{found} is not {want}"
        );
    }

    #[test]
    fn published_frequencies() {
        let plain = frequencies(64, 10_000.0, None);
        close(plain[1], 0.749_894_209);
        close(plain[15], 0.013_335_214_3);
        close(plain[31], 1.333_521_43e-4);
        let yarn = Yarn {
            factor: 16.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 65536,
        };
        let ramped = frequencies(64, 160_000.0, Some(&yarn));
        for (i, want) in [
            (1, 0.687_656_022),
            (14, 5.286_856_32e-3),
            (15, 3.635_538_58e-3),
            (16, 2.265_625e-3),
            (20, 2.969_777_78e-4),
            (24, 1.953_125e-5),
            (25, 5.372_312_67e-6),
            (31, 5.680_529_04e-7),
        ] {
            close(ramped[i], want);
        }
    }

    #[test]
    fn rotating_back_restores() {
        let rope = Rope {
            frequencies: frequencies(8, 10_000.0, None),
        };
        let original: Vec<f32> = (0..12).map(|i| i as f32 - 5.5).collect();
        let mut row = original.clone();
        let mut angles = Vec::new();
        rope.angles(77, &mut angles);
        rotate(&mut row, &angles);
        assert_eq!(row[..4], original[..4]);
        assert_ne!(row[4..], original[4..]);
        rotate_back(&mut row, &angles);
        assert!(row.iter().zip(&original).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}
