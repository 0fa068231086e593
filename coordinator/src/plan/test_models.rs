//! Models to plan for in tests.

use ds4_common::model::WeightBudget;
use ds4_common::model::synthetic::{Formats, presets};

use super::demand::Demand;

/// DeepSeek V4 Flash with Q4_K experts.
pub(super) fn flash() -> Demand {
    let hp = presets::flash(43);
    let budget = WeightBudget::of_formats(&hp, &Formats::PUBLISHED_Q4).expect("budget");
    Demand::new("flash".into(), None, &hp, &budget)
}

/// A model of a few kilobytes; unless `width` is a multiple of 256 its last block is narrow.
pub(super) fn small(layers: usize, experts: usize, width: usize) -> Demand {
    let mut hp = presets::tiny();
    hp.layers = layers;
    hp.compress_ratios = vec![0; layers];
    hp.clamp_routed = vec![10.0; layers];
    hp.clamp_shared = vec![10.0; layers];
    hp.hash_layers = 0;
    hp.experts = experts;
    hp.experts_used = experts.min(3);
    hp.expert_width = width;
    let formats = Formats::uniform(ds4_common::quant::GgmlType::Q8_0);
    let budget = WeightBudget::of_formats(&hp, &formats).expect("budget");
    Demand::new("small".into(), None, &hp, &budget)
}
