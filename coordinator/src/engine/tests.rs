//! Whatever is done to sequences, their logits are those of a fresh run of the same tokens.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ds4_common::expert::{ExpertBatch, ExpertStore};
use ds4_common::gguf::GgufModel;
use ds4_common::model::synthetic::{Recipe, presets, write};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::cluster::LocalBackend;

/// Tokens of the longest chunk.
const CHUNK: usize = 40;

/// Computes experts, and in one call sets a flag or fails.
struct Interrupted {
    experts: LocalBackend,
    /// Calls before the one that is interrupted.
    calls_left: AtomicUsize,
    fails: AtomicBool,
    cancelled: AtomicBool,
}

impl ExpertBackend for Interrupted {
    fn begin(&self, batch: Arc<ExpertBatch>) -> Result<Box<dyn PendingExperts + '_>, ExpertError> {
        if self.calls_left.fetch_sub(1, Ordering::SeqCst) == 0 {
            if self.fails.load(Ordering::SeqCst) {
                return Err(ExpertError::Incomplete);
            }
            self.cancelled.store(true, Ordering::SeqCst);
        }
        self.experts.begin(batch)
    }
}

impl Interrupted {
    fn arm(&self, calls: usize, fails: bool) {
        self.calls_left.store(calls, Ordering::SeqCst);
        self.fails.store(fails, Ordering::SeqCst);
        self.cancelled.store(false, Ordering::SeqCst);
    }
}

/// All ratios, a window that is soon full and an indexer that soon chooses.
fn shape() -> HyperParams {
    HyperParams {
        vocab: 64,
        window: 10,
        index_top_k: 6,
        layers: 3,
        compress_ratios: vec![0, 4, 128],
        clamp_routed: vec![10.0; 3],
        clamp_shared: vec![10.0; 3],
        ..presets::tiny()
    }
}

/// An engine over a small model, in blocks of at most `block_rows` rows.
fn engine(numerics: Numerics, rewind: usize, block_rows: usize) -> (Engine, Arc<Interrupted>) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    write(&path, &shape(), &Recipe::default()).expect("a model");
    let gguf = GgufModel::open(&path).expect("the model");
    let hp = HyperParams::from_model(&gguf).expect("hyper-parameters");
    let tensors = ModelTensors::bind(&gguf, &hp).expect("tensors");
    let store = ExpertStore::new(&hp, &tensors).expect("experts");
    let kernels = Kernels::detect();
    let backend = Arc::new(Interrupted {
        experts: LocalBackend::new(store, kernels),
        calls_left: AtomicUsize::new(usize::MAX),
        fails: AtomicBool::new(false),
        cancelled: AtomicBool::new(false),
    });
    let config = EngineConfig {
        kernels,
        numerics,
        threads: 1,
        pin: false,
        context: 0,
        rewind,
    };
    let layout = CacheLayout::in_blocks(&hp, numerics, rewind, block_rows);
    let mut engine = Engine::new(hp, &tensors, backend.clone(), &config).expect("engine");
    engine.cache = layout;
    (engine, backend)
}

#[derive(Clone, Debug)]
enum Op {
    Extend(usize),
    /// Several sequences in one step, with as many tokens each.
    Together(usize),
    Fork,
    Checkpoint,
    /// So many tokens back.
    Rewind(usize),
    /// A chunk that is cancelled, or whose experts fail, at a layer.
    Interrupt {
        tokens: usize,
        layer: usize,
        fails: bool,
    },
    Drop,
}

fn op() -> impl Strategy<Value = Op> {
    let interrupt = (1..=CHUNK, 0..3_usize, any::<bool>());
    prop_oneof![
        4 => (1..=CHUNK).prop_map(Op::Extend),
        2 => (1..=9_usize).prop_map(Op::Together),
        2 => Just(Op::Fork),
        1 => Just(Op::Checkpoint),
        4 => (0..70_usize).prop_map(Op::Rewind),
        2 => interrupt.prop_map(|(tokens, layer, fails)| Op::Interrupt { tokens, layer, fails }),
        1 => Just(Op::Drop),
    ]
}

/// A sequence and what it should be.
struct Live {
    sequence: Sequence,
    tokens: Vec<u32>,
    /// Tokens of the furthest step that it was part of, also if that failed.
    furthest: usize,
    /// It was a checkpoint with so many tokens.
    checkpoint: usize,
}

impl Live {
    fn fork(&self) -> Self {
        Live {
            sequence: self.sequence.fork(),
            tokens: self.tokens.clone(),
            ..*self
        }
    }

    /// Reachable is what must be, and rewinding works exactly where it says.
    fn rewind(&mut self, wanted: usize, kept: usize) {
        let promised = self.furthest.saturating_sub(kept).max(self.checkpoint);
        let earliest = self.sequence.oldest_reachable();
        if promised <= self.tokens.len() {
            assert!(earliest.is_some_and(|earliest| earliest <= promised));
        }
        let result = self.sequence.rewind(wanted);
        assert_eq!(
            result.is_ok(),
            earliest.is_some_and(|earliest| earliest <= wanted)
        );
        if result.is_ok() {
            assert!(!self.sequence.is_broken());
            self.tokens.truncate(wanted);
        }
        assert_eq!(self.sequence.position(), self.tokens.len());
    }
}

/// The tokens of a sequence after a step, and the logits of those that the step appended.
type Record = (Vec<u32>, Vec<f32>);

struct Run {
    engine: Engine,
    backend: Arc<Interrupted>,
    live: Vec<Live>,
    records: Vec<Record>,
    /// The next token, so that no two chunks are alike.
    next: u32,
}

impl Run {
    fn tokens(&mut self, count: usize) -> Vec<u32> {
        let token = |i: usize| (self.next.wrapping_mul(2_654_435_761) >> 7) as usize + i * i;
        let tokens = (0..count).map(|i| (token(i) % 64) as u32).collect();
        self.next += 1;
        tokens
    }

    fn empty(&self) -> Live {
        Live {
            sequence: self.engine.new_sequence(),
            tokens: Vec::new(),
            furthest: 0,
            checkpoint: 0,
        }
    }

    /// Appends `count` tokens to each of these sequences in one step.
    fn extend(&mut self, who: &[usize], count: usize) {
        let new: Vec<Vec<u32>> = who.iter().map(|_| self.tokens(count)).collect();
        let members = self.live.iter_mut().enumerate();
        let members = members.filter(|(i, _)| who.contains(i));
        let members: Vec<&mut Live> = members.map(|(_, live)| live).collect();
        let mut chunks = Vec::new();
        for (live, tokens) in members.into_iter().zip(&new) {
            live.tokens.extend(tokens);
            live.furthest = live.furthest.max(live.tokens.len());
            self.records.push((live.tokens.clone(), Vec::new()));
            chunks.push(Chunk {
                sequence: &mut live.sequence,
                tokens,
                logits: LogitsWanted::All,
                cancelled: None,
            });
        }
        let output = self.engine.step(&mut chunks).expect("a step");
        let first = self.records.len() - who.len();
        for (i, record) in self.records[first..].iter_mut().enumerate() {
            record.1 = output.logits(i).to_vec();
        }
    }

    /// A step that does not end well, after which the sequence is what it was before.
    fn interrupt(&mut self, who: usize, count: usize, layer: usize, fails: bool, kept: usize) {
        let tokens = self.tokens(count);
        let live = &mut self.live[who];
        let before = live.fork();
        live.furthest = live.furthest.max(live.tokens.len() + count);
        self.backend.arm(layer, fails);
        let mut chunks = [Chunk {
            sequence: &mut live.sequence,
            tokens: &tokens,
            logits: LogitsWanted::None,
            cancelled: Some(&self.backend.cancelled),
        }];
        let outcome = self.engine.step(&mut chunks);
        let done = outcome.is_ok_and(|output| !output.cancelled(0));
        self.backend.arm(usize::MAX, false);
        assert_eq!(done, !live.sequence.is_broken());
        if done {
            live.tokens.extend(tokens);
        }
        let position = before.tokens.len();
        live.rewind(position, kept);
        if live.sequence.is_broken() || live.tokens.len() != position {
            assert!(count > kept, "{count} tokens are undone");
            *live = before;
        }
    }

    fn apply(&mut self, op: &Op, who: usize, kept: usize) {
        let who = who % self.live.len();
        match *op {
            Op::Extend(count) => self.extend(&[who], count),
            Op::Together(count) => {
                let some: Vec<usize> = (0..self.live.len()).filter(|i| i % 2 == who % 2).collect();
                self.extend(&some, count);
            }
            Op::Fork => self.live.push(self.live[who].fork()),
            Op::Checkpoint => {
                let live = &self.live[who];
                self.live.push(Live {
                    sequence: live.sequence.checkpoint(),
                    checkpoint: live.tokens.len(),
                    ..live.fork()
                });
            }
            Op::Rewind(back) => {
                let live = &mut self.live[who];
                live.rewind(live.tokens.len().saturating_sub(back), kept);
            }
            Op::Interrupt {
                tokens,
                layer,
                fails,
            } => self.interrupt(who, tokens, layer, fails, kept),
            Op::Drop => {
                let (before, own) = (self.engine.kv_bytes(), self.live[who].sequence.own_bytes());
                self.live.swap_remove(who);
                assert_eq!(before - self.engine.kv_bytes(), own);
                if self.live.is_empty() {
                    self.live.push(self.empty());
                }
            }
        }
    }

    fn check_bytes(&self) {
        let planned = self.engine.sequence_bytes(CHUNK);
        for live in &self.live {
            assert!(live.sequence.bytes() <= planned(live.furthest));
        }
        let all: u64 = self.live.iter().map(|live| live.sequence.bytes()).sum();
        assert!(self.engine.kv_bytes() <= all);
    }

    /// Compares every step's logits with those of fresh runs of the longest lists of tokens.
    fn check_logits(&mut self) {
        let mut records = std::mem::take(&mut self.records);
        records.sort_by(|a, b| a.0.cmp(&b.0));
        let mut fresh: Record = Record::default();
        let vocab = self.engine.vocab();
        // Behind a list come all that it starts.
        for (tokens, logits) in records.iter().rev() {
            if !fresh.0.starts_with(tokens) {
                let mut sequence = self.engine.new_sequence();
                fresh = (tokens.clone(), Vec::new());
                for part in tokens.chunks(97) {
                    let mut chunks = [Chunk {
                        sequence: &mut sequence,
                        tokens: part,
                        logits: LogitsWanted::All,
                        cancelled: None,
                    }];
                    let output = self.engine.step(&mut chunks).expect("a step");
                    fresh.1.extend_from_slice(output.logits(0));
                }
            }
            let end = tokens.len() * vocab;
            let expected = &fresh.1[end - logits.len()..end];
            let same = expected
                .iter()
                .zip(logits)
                .all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "the last logits of {tokens:?}");
        }
    }
}

#[test]
fn any_interleaving_gives_the_bits_of_a_fresh_run() {
    for (numerics, kept, block_rows) in [
        (Numerics::Full, 64, 4),
        (Numerics::Full, 0, 64),
        (Numerics::F32, 5, 1),
        (Numerics::Full, 17, 16),
    ] {
        let ops = prop::collection::vec((op(), 0_usize..8), 1..24);
        let mut runner = TestRunner::new(Config {
            cases: 12,
            ..Config::default()
        });
        // Often behind the first window of ratio 128, or just before its end.
        let outcome = runner.run(&(ops, 0_usize..140), |(ops, start)| {
            let (engine, backend) = engine(numerics, kept, block_rows);
            let mut run = Run {
                engine,
                backend,
                live: Vec::new(),
                records: Vec::new(),
                next: 1,
            };
            run.live.push(run.empty());
            for part in [CHUNK; 4].into_iter().scan(start, |left, chunk| {
                let part = chunk.min(*left);
                *left -= part;
                (part > 0).then_some(part)
            }) {
                run.extend(&[0], part);
            }
            for (op, who) in &ops {
                run.apply(op, *who, kept);
                run.check_bytes();
            }
            run.live.clear();
            assert_eq!(run.engine.kv_bytes(), 0, "no block is left");
            run.check_logits();
            Ok(())
        });
        outcome.unwrap_or_else(|failure| panic!("{failure}"));
    }
}
