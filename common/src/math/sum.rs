//! Sums of rows, as the canonical tree adds them.

/// Adds `from` to `into`, elementwise.
#[inline(always)]
pub fn add_row(into: &mut [f32], from: &[f32]) {
    for (a, b) in into.iter_mut().zip(from) {
        *a += b;
    }
}

/// Adds the `len` values from `from` on to those from `into` on; the two do not overlap.
///
/// # Panics
/// They overlap, or one reaches beyond `values`.
#[inline(always)]
pub fn add_row_within(values: &mut [f32], into: usize, from: usize, len: usize) {
    let (head, tail) = values.split_at_mut(into.max(from));
    let (into, from) = if into < from {
        (&mut head[into..][..len], &tail[..len])
    } else {
        (&mut tail[..len], &head[from..][..len])
    };
    add_row(into, from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_added_in_either_order() {
        let mut values = [1.0, 2.0, 0.0, 10.0, 20.0];
        add_row_within(&mut values, 0, 3, 2);
        assert_eq!(values, [11.0, 22.0, 0.0, 10.0, 20.0]);
        add_row_within(&mut values, 3, 0, 2);
        assert_eq!(values, [11.0, 22.0, 0.0, 21.0, 42.0]);
    }

    #[test]
    #[should_panic(expected = "range end index")]
    fn rows_that_overlap_are_refused() {
        add_row_within(&mut [0.0; 4], 0, 1, 2);
    }
}
