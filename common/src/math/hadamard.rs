//! The Walsh–Hadamard transform of index rows.

/// Walsh–Hadamard transform in natural (Sylvester) order, scaled by 1/√n. `x.len()` is a power of
/// two; other lengths leave `x` as it is.
#[inline(always)]
pub fn hadamard(x: &mut [f32]) {
    let n = x.len();
    if !n.is_power_of_two() {
        return;
    }
    let mut half = 1;
    while half < n {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = 1.0 / (n as f32).sqrt();
    for v in x {
        *v *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::hadamard;

    #[test]
    fn twice_is_the_identity() {
        let original: Vec<f32> = (0..128).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut x = original.clone();
        hadamard(&mut x);
        hadamard(&mut x);
        assert!(x.iter().zip(&original).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn rows_are_sylvesters() {
        let mut x = [0.0, 1.0, 0.0, 0.0];
        hadamard(&mut x);
        assert_eq!(x, [0.5, -0.5, 0.5, -0.5]);
    }
}
