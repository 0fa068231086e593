//! How much of a layer each node gets: all nodes take the same time, as far as their memory
//! allows it.

/// What limits a node's share of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Speed {
    /// Seconds that a share of 1 takes.
    pub(super) whole: f64,
    /// Seconds that come on top of any share.
    pub(super) delay: f64,
    /// The largest share that fits into the memory, from 0 to 1.
    pub(super) cap: f64,
}

/// Shares of a layer such that the last node to finish does so as early as possible. They add up
/// to 1, or to the sum of the caps if that is less.
pub(super) fn equal_times(speeds: &[Speed]) -> Vec<f64> {
    let at = |time: f64| -> Vec<f64> {
        speeds
            .iter()
            .map(|s| ((time - s.delay) / s.whole).clamp(0.0, s.cap))
            .collect()
    };
    let sum = |shares: &[f64]| shares.iter().sum::<f64>();
    let slowest = |s: &Speed| s.delay + s.whole;
    let (mut low, mut high) = (0.0, speeds.iter().map(slowest).fold(0.0, f64::max));
    if sum(&at(high)) <= 1.0 {
        return at(high);
    }
    // 64 halvings use up the 53 bits of a double.
    for _ in 0..64 {
        let middle = f64::midpoint(low, high);
        if sum(&at(middle)) < 1.0 {
            low = middle;
        } else {
            high = middle;
        }
    }
    at(high)
}

/// Whole numbers near `targets` that add up to `total`, none above its `room`; `None` if the room
/// is too small. What rounding down leaves goes to the entries that are furthest below their
/// target.
pub(super) fn round(targets: &[f64], room: &[u32], total: u32) -> Option<Vec<u32>> {
    let mut shares: Vec<u32> = targets
        .iter()
        .zip(room)
        .map(|(target, room)| (target.max(0.0) as u32).min(*room))
        .collect();
    let below = |shares: &[u32], i: usize| targets[i] - f64::from(shares[i]);
    while shares.iter().sum::<u32>() > total {
        let most = (0..shares.len())
            .filter(|&i| shares[i] > 0)
            .min_by(|&a, &b| below(&shares, a).total_cmp(&below(&shares, b)))?;
        shares[most] -= 1;
    }
    let mut left = total - shares.iter().sum::<u32>();
    while left > 0 {
        let next = (0..shares.len())
            .filter(|&i| shares[i] < room[i])
            .max_by(|&a, &b| {
                let (x, y) = (below(&shares, a), below(&shares, b));
                x.total_cmp(&y).then(b.cmp(&a))
            })?;
        shares[next] += 1;
        left -= 1;
    }
    Some(shares)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn speed(whole: f64, delay: f64, cap: f64) -> Speed {
        Speed { whole, delay, cap }
    }

    #[test]
    fn equal_nodes_share_equally_and_fast_ones_take_more() {
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(close(&equal_times(&[speed(2.0, 0.1, 1.0); 4]), &[0.25; 4]));
        let uneven = equal_times(&[speed(1.0, 0.0, 1.0), speed(3.0, 0.0, 1.0)]);
        assert!(close(&uneven, &[0.75, 0.25]), "{uneven:?}");
        let capped = equal_times(&[speed(1.0, 0.0, 0.5), speed(3.0, 0.0, 1.0)]);
        assert!(close(&capped, &[0.5, 0.5]), "{capped:?}");
        // A node whose delay exceeds the time of the whole gets nothing.
        let far = equal_times(&[speed(1.0, 0.0, 1.0), speed(1.0, 5.0, 1.0)]);
        assert!(close(&far, &[1.0, 0.0]), "{far:?}");
        assert!(close(&equal_times(&[speed(1.0, 0.0, 0.3); 2]), &[0.3; 2]));
    }

    #[test]
    fn remainders_go_to_the_largest_and_ties_to_the_first() {
        let all = [100; 3];
        assert_eq!(round(&[2.7, 2.6, 2.7], &all, 8), Some(vec![3, 2, 3]));
        assert_eq!(round(&[2.5; 3], &all, 8), Some(vec![3, 3, 2]));
        assert_eq!(round(&[2.7, 2.6, 2.7], &[2, 2, 9], 8), Some(vec![2, 2, 4]));
        assert_eq!(round(&[2.7; 3], &[2; 3], 8), None);
        assert_eq!(round(&[5.0, 5.0], &all[..2], 7), Some(vec![3, 4]));
    }

    proptest! {
        #[test]
        fn rounding_is_exact_and_within_the_room(
            nodes in prop::collection::vec((0.0f64..40.0, 0u32..40), 1..33),
            total in 0u32..200,
        ) {
            let (targets, room): (Vec<f64>, Vec<u32>) = nodes.into_iter().unzip();
            match round(&targets, &room, total) {
                Some(shares) => {
                    prop_assert_eq!(shares.iter().sum::<u32>(), total);
                    prop_assert!(shares.iter().zip(&room).all(|(s, r)| s <= r));
                }
                None => prop_assert!(room.iter().sum::<u32>() < total),
            }
        }

        #[test]
        fn equal_times_are_shares_of_one(
            nodes in prop::collection::vec((0.01f64..10.0, 0.0f64..3.0, 0.0f64..1.0), 1..33),
        ) {
            let speeds: Vec<Speed> = nodes.iter().map(|&(w, d, c)| speed(w, d, c)).collect();
            let shares = equal_times(&speeds);
            let sum: f64 = shares.iter().sum();
            let caps: f64 = speeds.iter().map(|s| s.cap).sum();
            prop_assert!(shares.iter().zip(&speeds).all(|(s, n)| (0.0..=n.cap).contains(s)));
            prop_assert!((sum - caps.min(1.0)).abs() < 1e-6, "{} of {}", sum, caps);
        }
    }
}
