use ds4_common::random::XorShift64Star;
use proptest::prelude::*;

use super::{ParamError, SampleError, Sampler, SamplingParams, greedy, log_probs};

const ALL: SamplingParams = SamplingParams {
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    seed: 1,
};

fn draw(params: SamplingParams, logits: &[f32], count: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(params).unwrap();
    (0..count)
        .map(|_| sampler.sample(logits).unwrap())
        .collect()
}

#[test]
fn temperature_0_takes_the_lowest_of_the_likeliest() {
    let cold = SamplingParams {
        temperature: 0.0,
        ..ALL
    };
    assert_eq!(draw(cold, &[0.0, 3.0, -1.0, 3.0], 3), [1, 1, 1]);
    assert_eq!(greedy(&[-0.0, 0.0]), Ok(0));
}

#[test]
fn each_filter_leaves_what_it_should() {
    let logits = [0.15f32, 0.25, 0.1, 0.5].map(f32::ln);
    let seen = |params| {
        let mut tokens = draw(params, &logits, 400);
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    };
    assert_eq!(seen(ALL), [0, 1, 2, 3]);
    assert_eq!(seen(SamplingParams { top_k: 1, ..ALL }), [3]);
    assert_eq!(seen(SamplingParams { top_k: 2, ..ALL }), [1, 3]);
    assert_eq!(seen(SamplingParams { top_p: 0.45, ..ALL }), [3]);
    assert_eq!(seen(SamplingParams { top_p: 0.7, ..ALL }), [1, 3]);
    assert_eq!(seen(SamplingParams { top_p: 0.8, ..ALL }), [0, 1, 3]);
    assert_eq!(seen(SamplingParams { min_p: 0.4, ..ALL }), [1, 3]);
    assert_eq!(seen(SamplingParams { min_p: 0.25, ..ALL }), [0, 1, 3]);
    // The share is of the whole sum, not of the 0.9 that `top_k` left: 0.75 does not reach it.
    assert_eq!(
        seen(SamplingParams {
            top_k: 3,
            top_p: 0.8,
            ..ALL
        }),
        [0, 1, 3]
    );
    // At a low temperature only the likeliest has a chance.
    assert_eq!(
        seen(SamplingParams {
            temperature: 0.01,
            ..ALL
        }),
        [3]
    );
}

#[test]
fn tokens_come_as_often_as_they_are_likely() {
    let logits = [0.1f32, 0.2, 0.3, 0.4].map(f32::ln);
    let mut counts = [0u32; 4];
    for token in draw(ALL, &logits, 20_000) {
        counts[token as usize] += 1;
    }
    for (count, expected) in counts.into_iter().zip([2000, 4000, 6000, 8000]) {
        assert!(count.abs_diff(expected) < 250, "{counts:?}");
    }
}

#[test]
fn a_seed_gives_the_same_tokens() {
    let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 / 25.0).collect();
    let one = draw(SamplingParams { seed: 7, ..ALL }, &logits, 50);
    assert_eq!(one, draw(SamplingParams { seed: 7, ..ALL }, &logits, 50));
    assert_ne!(one, draw(SamplingParams { seed: 8, ..ALL }, &logits, 50));
}

#[test]
fn parameters_outside_their_range_are_named() {
    for (params, field) in [
        (
            SamplingParams {
                temperature: -0.1,
                ..ALL
            },
            "temperature",
        ),
        (
            SamplingParams {
                temperature: f32::NAN,
                ..ALL
            },
            "temperature",
        ),
        (
            SamplingParams {
                temperature: 2.1,
                ..ALL
            },
            "temperature",
        ),
        (SamplingParams { top_p: 0.0, ..ALL }, "top_p"),
        (SamplingParams { top_p: 1.1, ..ALL }, "top_p"),
        (SamplingParams { min_p: -0.5, ..ALL }, "min_p"),
        (
            SamplingParams {
                min_p: f32::NAN,
                ..ALL
            },
            "min_p",
        ),
    ] {
        let error: ParamError = Sampler::new(params).unwrap_err();
        assert_eq!(error.field, field);
        assert!(error.to_string().contains(field));
    }
    assert_eq!(SamplingParams::default().validate(), Ok(()));
}

#[test]
fn logits_without_a_choice_are_refused() {
    let sample = |logits: &[f32]| Sampler::new(ALL).unwrap().sample(logits);
    assert_eq!(sample(&[]), Err(SampleError::Empty));
    assert_eq!(sample(&[0.0, f32::NAN]), Err(SampleError::NotFinite(1)));
    assert_eq!(
        sample(&[f32::INFINITY, 0.0]),
        Err(SampleError::NotFinite(0))
    );
    assert_eq!(
        sample(&[f32::NEG_INFINITY; 2]),
        Err(SampleError::NothingPossible)
    );
    assert_eq!(sample(&[f32::NEG_INFINITY, 0.0]), Ok(1));
}

#[test]
fn log_probs_are_those_of_the_softmax() {
    let logits = [0.125f32, 0.5, 0.25, 0.125].map(|p| p.ln() + 5.0);
    let found = log_probs(&logits, 2, 3).unwrap();
    assert!((found.chosen - 0.25f32.ln()).abs() < 1e-6);
    assert_eq!(
        found.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        [1, 2, 0]
    );
    assert!((found.top[0].1 - 0.5f32.ln()).abs() < 1e-6);
    assert_eq!(log_probs(&logits, 4, 0), Err(SampleError::Empty));
    assert_eq!(log_probs(&logits, 0, 0).unwrap().top, []);
    let all = log_probs(&logits, 0, 99).unwrap().top;
    assert_eq!(
        all.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        [1, 2, 0, 3]
    );
}

/// The definition, with the whole vocabulary in order.
fn sample_slowly(params: SamplingParams, logits: &[f32]) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let p = |id: u32| f64::from(libm::expf((logits[id as usize] - max) / params.temperature));
    let ids = 0..logits.len() as u32;
    let total: f64 = ids.clone().map(p).sum();
    let mut order: Vec<u32> = ids.collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    if params.top_k > 0 {
        order.truncate(params.top_k as usize);
    }
    order.retain(|&id| p(id) >= f64::from(params.min_p));
    let mut sum = 0.0;
    let reached = order.iter().position(|&id| {
        sum += p(id);
        sum >= f64::from(params.top_p) * total
    });
    if let Some(last) = reached.filter(|_| params.top_p < 1.0) {
        order.truncate(last + 1);
    }
    let kept: f64 = order.iter().map(|&id| p(id)).sum();
    let target = XorShift64Star::new(params.seed).unit() * kept;
    let mut sum = 0.0;
    let drawn = order.iter().find(|&&id| {
        sum += p(id);
        sum > target
    });
    *drawn.unwrap_or(&order[order.len() - 1])
}

proptest! {
    #[test]
    fn sorting_only_as_far_as_needed_changes_nothing(
        // Sixteenths, so that many logits are equal.
        logits in prop::collection::vec((-40i8..40).prop_map(|l| f32::from(l) / 16.0), 1..3000),
        temperature in prop::sample::select(vec![0.25f32, 1.0, 2.0]),
        top_k in prop::sample::select(vec![0u32, 1, 7, 300, 2500]),
        top_p in prop::sample::select(vec![1.0f32, 0.95, 0.5]),
        min_p in prop::sample::select(vec![0.0f32, 0.05]),
        seed in any::<u64>(),
    ) {
        let params = SamplingParams { temperature, top_k, top_p, min_p, seed };
        prop_assert_eq!(draw(params, &logits, 1)[0], sample_slowly(params, &logits));
    }
}
