//! Shapes for synthetic models.

use crate::model::{HyperParams, Yarn};

/// The widths of the published Flash model with the first `layers` (at least 1) of its 43 layers.
#[must_use]
pub fn flash(layers: usize) -> HyperParams {
    let layers = layers.max(1);
    let ratio = |layer: usize| match layer {
        0 | 1 => 0,
        even if even % 2 == 0 => 4,
        _ => 128,
    };
    let compress_ratios: Vec<usize> = (0..layers).map(ratio).collect();
    let indexed = |value: usize| {
        if compress_ratios.contains(&4) {
            value
        } else {
            0
        }
    };
    HyperParams {
        layers,
        hidden: 4096,
        vocab: 129_280,
        context: 1_048_576,
        heads: 64,
        head_dim: 512,
        rope_dims: 64,
        q_rank: 1024,
        out_groups: 8,
        out_rank: 1024,
        window: 128,
        index_heads: indexed(64),
        index_dim: indexed(128),
        index_top_k: indexed(512),
        compress_ratios,
        streams: 4,
        sinkhorn_iterations: 20,
        hc_eps: 1e-6,
        experts: 256,
        experts_used: 6,
        expert_width: 2048,
        hash_layers: layers.min(3),
        expert_scale: 1.5,
        normalize_weights: true,
        clamp_routed: vec![10.0; layers],
        clamp_shared: vec![10.0; layers],
        rms_eps: 1e-6,
        rope_base: 10_000.0,
        compress_rope_base: 160_000.0,
        yarn: Some(Yarn {
            factor: 16.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 65_536,
        }),
        shared_experts: 1,
    }
}

/// A model of under 5 MB that has every mechanism: all three ratios, hash and learned routers. All
/// rows of matrices are multiples of 256, so any weight format fits.
#[must_use]
pub fn tiny() -> HyperParams {
    let layers = 4;
    HyperParams {
        layers,
        hidden: 256,
        vocab: 512,
        context: 4096,
        heads: 4,
        head_dim: 256,
        q_rank: 256,
        out_groups: 2,
        out_rank: 128,
        window: 64,
        index_heads: 4,
        index_top_k: 16,
        compress_ratios: vec![0, 4, 128, 4],
        experts: 8,
        experts_used: 2,
        expert_width: 256,
        hash_layers: 2,
        clamp_routed: vec![10.0; layers],
        clamp_shared: vec![10.0; layers],
        ..flash(layers)
    }
}
