//! Root-mean-square norm. Squares are summed in f64, in eight lanes and a fixed tree.

/// 1 / sqrt(mean(x²) + ε).
#[inline(always)]
#[must_use]
pub fn rms_scale(x: &[f32], epsilon: f32) -> f32 {
    let mut lanes = [0.0f64; 8];
    let mut chunks = x.chunks_exact(8);
    for chunk in &mut chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(v) * f64::from(v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += f64::from(v) * f64::from(v);
    }
    for width in [4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    let mean = (lanes[0] / x.len() as f64) as f32;
    1.0 / (mean + epsilon).sqrt()
}

/// out = x · weight / rms(x).
#[inline(always)]
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let scale = rms_scale(x, epsilon);
    for ((o, &v), &w) in out.iter_mut().zip(x).zip(weight) {
        *o = (v * scale) * w;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norm_of_a_constant_is_its_sign() {
        let x = vec![-3.0; 100];
        let mut out = vec![0.0; 100];
        rms_norm(&x, &vec![2.0; 100], 0.0, &mut out);
        assert!(out.iter().all(|v| (v + 2.0).abs() < 1e-6));
    }

    #[test]
    fn epsilon_keeps_zero_finite() {
        assert!((rms_scale(&[0.0; 16], 1e-6) - 1000.0).abs() < 0.1);
    }
}
