//! The router: which experts a token goes to, and with which weights.

use ds4_common::expert::Route;
use ds4_common::math::softplus;
use ds4_common::model::HyperParams;

use crate::engine::weights::ExpertChoice;

/// Smallest divisor of the weights' normalisation.
const MIN_WEIGHT_SUM: f32 = 6.103_515_6e-5;

/// Buffers of [`route`].
#[derive(Debug, Default)]
pub(crate) struct RouterScratch {
    /// Score plus bias of every expert.
    biased: Vec<f32>,
    /// Ids of the chosen experts.
    order: Vec<u32>,
}

/// Writes the `experts_used` routes of one token to `routes`. `logits` has one value per expert.
pub(crate) fn route(
    hp: &HyperParams,
    choice: &ExpertChoice,
    token: u32,
    logits: &[f32],
    scratch: &mut RouterScratch,
    routes: &mut [Route],
) {
    let score = |expert: u32| softplus(logits[expert as usize]).sqrt();
    let used = hp.experts_used;
    let RouterScratch { biased, order } = scratch;
    match choice {
        ExpertChoice::Hash { table, stride } => {
            let row = token as usize * stride * 4;
            order.clear();
            order.extend(
                table.bytes()[row..row + used * 4]
                    .chunks_exact(4)
                    .map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]])),
            );
        }
        ExpertChoice::Learned { bias } => {
            biased.clear();
            biased.extend(bias.iter().enumerate().map(|(e, b)| score(e as u32) + b));
            top_k(biased, used, order);
        }
    }
    for (route, &expert) in routes.iter_mut().zip(order.iter()) {
        *route = Route {
            expert,
            weight: score(expert),
        };
    }
    let divisor = if hp.normalize_weights {
        routes
            .iter()
            .map(|r| r.weight)
            .sum::<f32>()
            .max(MIN_WEIGHT_SUM)
    } else {
        1.0
    };
    for r in routes {
        r.weight = r.weight / divisor * hp.expert_scale;
    }
}

/// Indices of the `k` largest values, largest first, the lower index first among equals.
/// NaN counts as smaller than every number, so that it can't displace one; both zeros are equal.
pub(crate) fn top_k(values: &[f32], k: usize, out: &mut Vec<u32>) {
    let key = |i: u32| {
        let v = values[i as usize];
        if v.is_nan() {
            f32::NEG_INFINITY
        } else {
            v + 0.0
        }
    };
    let order = |a: &u32, b: &u32| key(*b).total_cmp(&key(*a)).then(a.cmp(b));
    out.clear();
    out.extend(0..values.len() as u32);
    if k < out.len() {
        out.select_nth_unstable_by(k, order);
        out.truncate(k);
    }
    out.sort_unstable_by(order);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lower_index_and_nan_loses() {
        let mut out = Vec::new();
        top_k(&[1.0, 3.0, f32::NAN, 3.0, 2.0], 3, &mut out);
        assert_eq!(out, [1, 3, 4]);
        top_k(&[0.0; 6], 2, &mut out);
        assert_eq!(out, [0, 1]);
        top_k(&[-0.0, 0.0], 1, &mut out);
        assert_eq!(out, [0]);
    }
}
