//! The engine's contract apart from numbers: errors, cancellation, memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ds4_common::expert::ExpertBatch;
use ds4_coordinator::engine::{
    Chunk, Engine, EngineError, ExpertBackend, ExpertError, LogitsWanted, Numerics, PendingExperts,
    Sequence,
};
use ds4_tests::golden::Reference;

use crate::golden::{engine, engine_on, logits};

const MODEL: Reference = Reference("tiny-b");

fn chunk<'a>(sequence: &'a mut Sequence, tokens: &'a [u32]) -> Chunk<'a> {
    Chunk {
        sequence,
        tokens,
        logits: LogitsWanted::Last,
        cancelled: None,
    }
}

fn step_one(
    engine: &mut Engine,
    sequence: &mut Sequence,
    tokens: &[u32],
) -> Result<(), EngineError> {
    engine.step(&mut [chunk(sequence, tokens)]).map(|_| ())
}

#[test]
fn bad_chunks_are_refused_and_change_nothing() {
    let mut engine = engine(MODEL, Numerics::Full);
    let mut sequence = engine.new_sequence();
    let vocab = engine.vocab() as u32;
    assert!(matches!(
        step_one(&mut engine, &mut sequence, &[1, vocab]),
        Err(EngineError::Token { token, .. }) if token == vocab
    ));
    assert!(matches!(
        step_one(&mut engine, &mut sequence, &[]),
        Err(EngineError::EmptyChunk)
    ));
    let long = vec![1; engine.context() + 1];
    assert!(matches!(
        step_one(&mut engine, &mut sequence, &long),
        Err(EngineError::Context { position: 0, .. })
    ));
    assert_eq!(sequence.position(), 0);
    assert!(!sequence.is_broken());
    step_one(&mut engine, &mut sequence, &[1, 2, 3]).expect("a good chunk");
    assert_eq!(sequence.position(), 3);
}

#[test]
fn a_sequence_takes_no_more_bytes_than_are_planned_for_it() {
    let tokens = MODEL.tokens("rand").expect("tokens");
    for numerics in [Numerics::Full, Numerics::F32] {
        let mut engine = engine(MODEL, numerics);
        for size in [1, 5, 64] {
            let planned = engine.sequence_bytes(size);
            let mut sequence = engine.new_sequence();
            assert_eq!(sequence.bytes(), planned(0));
            for part in tokens.chunks(size) {
                step_one(&mut engine, &mut sequence, part).expect("a step");
                let (bytes, position) = (sequence.bytes(), sequence.position());
                assert!(bytes <= planned(position), "{position} in {size}");
                // Exact to the byte until the inputs of the first compressed row are dropped.
                if position < 8 {
                    assert_eq!(bytes, planned(position), "{position} in {size}");
                }
            }
            assert!(sequence.position() > 100);
        }
    }
}

/// Counts calls and sets a flag at one of them; computes nothing.
struct Tripwire {
    calls: AtomicUsize,
    trip_at: usize,
    flag: Arc<AtomicBool>,
    fail: bool,
}

struct Zeros;

impl PendingExperts for Zeros {
    fn finish(self: Box<Self>, _: &dyn Fn() -> bool, out: &mut [f32]) -> Result<(), ExpertError> {
        out.fill(0.0);
        Ok(())
    }
}

impl ExpertBackend for Tripwire {
    fn begin(&self, _: Arc<ExpertBatch>) -> Result<Box<dyn PendingExperts + '_>, ExpertError> {
        if self.calls.fetch_add(1, Ordering::SeqCst) == self.trip_at {
            self.flag.store(true, Ordering::SeqCst);
            if self.fail {
                return Err(ExpertError::Incomplete);
            }
        }
        Ok(Box::new(Zeros))
    }
}

fn tripwire(trip_at: usize, fail: bool) -> (Arc<Tripwire>, Arc<AtomicBool>) {
    let flag = Arc::new(AtomicBool::new(false));
    let backend = Tripwire {
        calls: AtomicUsize::new(0),
        trip_at,
        flag: flag.clone(),
        fail,
    };
    (Arc::new(backend), flag)
}

#[test]
fn a_cancelled_chunk_ends_within_one_layer() {
    let (backend, flag) = tripwire(1, false);
    let mut engine = engine_on(MODEL, Numerics::Full, backend.clone());
    let mut sequence = engine.new_sequence();
    let mut chunks = [Chunk {
        cancelled: Some(&flag),
        ..chunk(&mut sequence, &[1, 2, 3])
    }];
    let output = engine
        .step(&mut chunks)
        .expect("cancelling is not an error");
    assert!(output.cancelled(0));
    assert!(output.logits(0).is_empty());
    assert_eq!(
        backend.calls.load(Ordering::SeqCst),
        2,
        "no layer after the one that was running"
    );
    assert!(sequence.is_broken());
    assert!(matches!(
        step_one(&mut engine, &mut sequence, &[1]),
        Err(EngineError::BrokenSequence)
    ));
}

#[test]
fn neighbours_of_a_cancelled_chunk_keep_their_bits() {
    let mut engine = engine(MODEL, Numerics::Full);
    let tokens = MODEL.tokens("rand").expect("tokens");
    let alone = [
        logits(&mut engine, &tokens[..70], &[70]),
        logits(&mut engine, &tokens[50..110], &[60]),
    ];
    let gone = AtomicBool::new(true);
    let [mut first, mut leaving, mut last] = [(); 3].map(|()| engine.new_sequence());
    let all = |sequence, tokens| Chunk {
        sequence,
        tokens,
        logits: LogitsWanted::All,
        cancelled: None,
    };
    let mut chunks = [
        all(&mut first, &tokens[..70]),
        Chunk {
            cancelled: Some(&gone),
            ..all(&mut leaving, &tokens[20..40])
        },
        all(&mut last, &tokens[50..110]),
    ];
    let output = engine.step(&mut chunks).expect("step");
    assert!(output.cancelled(1));
    assert_eq!(output.logits(0), alone[0]);
    assert_eq!(output.logits(2), alone[1]);
}

#[test]
fn failing_experts_break_the_sequences_of_the_step() {
    let (backend, _) = tripwire(2, true);
    let mut engine = engine_on(MODEL, Numerics::Full, backend);
    let mut sequence = engine.new_sequence();
    assert!(matches!(
        step_one(&mut engine, &mut sequence, &[1, 2]),
        Err(EngineError::Experts(ExpertError::Incomplete))
    ));
    assert!(sequence.is_broken());
}
