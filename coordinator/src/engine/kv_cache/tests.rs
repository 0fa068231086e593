//! Sequences without a model: what they hold, and what they can be rewound to.

use ds4_common::model::synthetic::presets;

use super::stream_spec::StreamSpec;
use super::*;

fn layout(rewind: usize) -> CacheLayout {
    CacheLayout::new(&presets::tiny(), Numerics::Full, rewind)
}

fn grown(layout: &CacheLayout, meter: &BlockMeter, tokens: usize) -> Sequence {
    let mut sequence = Sequence::new(layout, meter);
    sequence.append_zeros(tokens);
    sequence
}

#[test]
fn the_last_positions_are_reachable_and_errors_name_what_is() {
    for rewind in [0, 1, 64, 200] {
        let meter = BlockMeter::default();
        for tokens in [0, 1, 63, 127, 128, 129, 200, 517] {
            let sequence = grown(&layout(rewind), &meter, tokens);
            let earliest = sequence.oldest_reachable().expect("itself at least");
            assert!(earliest <= tokens.saturating_sub(rewind), "{tokens}");
            for wanted in earliest..=tokens {
                let mut fork = sequence.fork();
                assert_eq!(fork.rewind(wanted), Ok(()), "{tokens} to {wanted}");
                assert_eq!(fork.position(), wanted);
            }
            let mut sequence = sequence;
            let later = RewindError::Later {
                position: tokens,
                wanted: tokens + 1,
            };
            assert_eq!(sequence.rewind(tokens + 1), Err(later));
            if let Some(wanted) = earliest.checked_sub(1) {
                let error = RewindError::TooFar {
                    position: tokens,
                    wanted,
                    earliest,
                };
                assert_eq!(sequence.rewind(wanted), Err(error));
                let text = error.to_string();
                for number in [tokens, wanted, earliest] {
                    assert!(text.contains(&number.to_string()), "{text}");
                }
            }
            assert_eq!(sequence.position(), tokens);
        }
        assert_eq!(meter.bytes(), 0);
    }
}

#[test]
fn a_checkpoint_goes_on_and_holds_the_least_between_windows() {
    let meter = BlockMeter::default();
    let layout = layout(64);
    let inputs = |sequence: &Sequence| -> u64 {
        let compressors = sequence.layers.iter().flat_map(|layer| &layer.compressed);
        compressors.map(|c| c.inputs.bytes()).sum()
    };
    let between = grown(&layout, &meter, 256).checkpoint();
    let within = grown(&layout, &meter, 255).checkpoint();
    // Of ratio 128 nothing, of two layers of ratio 4 the last window.
    let block = 4 * 2 * 2 * 256 * 4;
    assert_eq!(inputs(&between), 2 * block);
    assert!(inputs(&within) > 100 * 1024);
    assert_eq!(within.oldest_reachable(), Some(255));
    // It keeps more again once it grows.
    let mut on = between.fork();
    on.append_zeros(70);
    assert_eq!(on.rewind(262), Ok(()));
    drop((on, between, within));
    assert_eq!(meter.bytes(), 0);
}

#[test]
fn bytes_are_counted_once_however_many_hold_them() {
    let meter = BlockMeter::default();
    let layout = layout(0);
    let sequence = grown(&layout, &meter, 1000);
    let alone = meter.bytes();
    assert_eq!((sequence.bytes(), sequence.own_bytes()), (alone, alone));
    let mut forks: Vec<Sequence> = (0..10).map(|_| sequence.fork()).collect();
    assert_eq!(meter.bytes(), alone);
    assert_eq!(sequence.own_bytes(), 0);
    let specs = layout.layers.iter().flat_map(LayerStreams::iter);
    let open_blocks: u64 = specs.map(StreamSpec::block_bytes).sum();
    for fork in &mut forks {
        fork.append_zeros(1);
        assert!((1..=open_blocks).contains(&fork.own_bytes()));
        assert!(fork.bytes() <= layout.most_bytes(1001, 1));
    }
    assert!(meter.bytes() <= alone + 10 * open_blocks);
    drop(sequence);
    let held = meter.bytes();
    let own = forks[0].own_bytes();
    forks.swap_remove(0);
    assert_eq!(held - meter.bytes(), own);
    forks.clear();
    assert_eq!(meter.bytes(), 0);
}

#[test]
fn a_broken_sequence_whose_rows_are_gone_says_so() {
    let mut sequence = grown(&layout(0), &BlockMeter::default(), 500);
    // As if the first layer of a step of 300 tokens had run and the others had not.
    sequence.broken = true;
    sequence.layers[0].window.grow(800);
    let error = sequence.rewind(500).unwrap_err();
    assert_eq!(
        error,
        RewindError::Lost {
            position: 500,
            wanted: 500
        }
    );
    assert!(sequence.is_broken());
}
